package report

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"strconv"
	"strings"
)

// drawing is an SVG under construction: width×height units, about a pixel each on a phone, larger where there is room.
// Colours and fonts are the style sheet's, by class.
type drawing struct {
	b             strings.Builder
	id            string
	width, height float64
	title, desc   string
}

const drawingWidth = 360

func newDrawing(id, title, desc string, height float64) *drawing {
	return &drawing{id: id, width: drawingWidth, height: height, title: title, desc: desc}
}

// html closes the drawing. A screen reader reads its title and description.
func (d *drawing) html() template.HTML {
	id := html.EscapeString(d.id)
	// Every text that comes from a result went through html.EscapeString, every number through %.1f.
	return template.HTML(fmt.Sprintf(`<svg viewBox="0 0 %.0f %.0f" role="img" aria-labelledby="%s-t %s-d"><title id="%s-t">%s</title><desc id="%s-d">%s</desc>%s</svg>`,
		d.width, d.height, id, id, id, html.EscapeString(d.title), id, html.EscapeString(d.desc), d.b.String()))
}

func (d *drawing) line(class string, x1, y1, x2, y2 float64) {
	fmt.Fprintf(&d.b, `<line class="%s" x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f"/>`, class, x1, y1, x2, y2)
}

func (d *drawing) rect(class string, x, y, w, h float64) {
	fmt.Fprintf(&d.b, `<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`, class, x, y, max(w, 0), h)
}

// anchor is start, middle or end.
func (d *drawing) text(class, anchor string, x, y float64, text string) {
	fmt.Fprintf(&d.b, `<text class="%s" text-anchor="%s" x="%.1f" y="%.1f">%s</text>`, class, anchor, x, y, html.EscapeString(text))
}

func (d *drawing) path(class string, points [][2]float64) {
	var path strings.Builder
	for i, p := range points {
		fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(i, 1)], p[0], p[1])
	}
	fmt.Fprintf(&d.b, `<path class="%s" d="%s"/>`, class, path.String())
}

// band is the area between two curves.
func (d *drawing) band(class string, low, high [][2]float64) {
	points := append([][2]float64{}, low...)
	for i := len(high) - 1; i >= 0; i-- {
		points = append(points, high[i])
	}
	d.path(class, points)
}

// mark draws the shape of series i, so that nobody needs its colour: hollow or filled.
func (d *drawing) mark(i int, x, y float64, filled bool) {
	class := fmt.Sprintf("mark s%d", i%series)
	if !filled {
		class += " hollow"
	}
	const r = 3.6
	switch i % series {
	case 0:
		fmt.Fprintf(&d.b, `<circle class="%s" cx="%.1f" cy="%.1f" r="%.1f"/>`, class, x, y, r)
	case 1:
		d.rect(class, x-r*.9, y-r*.9, 1.8*r, 1.8*r)
	case 2:
		fmt.Fprintf(&d.b, `<path class="%s" d="M%.1f %.1fL%.1f %.1fL%.1f %.1fZ"/>`, class, x, y-1.2*r, x+1.15*r, y+.9*r, x-1.15*r, y+.9*r)
	case 3:
		fmt.Fprintf(&d.b, `<path class="%s" d="M%.1f %.1fL%.1f %.1fL%.1f %.1fL%.1f %.1fZ"/>`, class, x, y-1.3*r, x+1.3*r, y, x, y+1.3*r, x-1.3*r, y)
	case 4:
		fmt.Fprintf(&d.b, `<path class="%s" d="M%.1f %.1fL%.1f %.1fL%.1f %.1fZ"/>`, class, x, y+1.2*r, x+1.15*r, y-.9*r, x-1.15*r, y-.9*r)
	case 5:
		d.rect(class, x-1.3*r, y-.55*r, 2.6*r, 1.1*r)
	case 6:
		d.rect(class, x-.55*r, y-1.3*r, 1.1*r, 2.6*r)
	case 7:
		fmt.Fprintf(&d.b, `<path class="%s" d="M%.1f %.1fh%.1fv%.1fh%.1fv%.1fh%.1fv%.1fh%.1fv%.1fh%.1fv%.1fh%.1fZ"/>`, class,
			x-.45*r, y-1.3*r, .9*r, .85*r, .85*r, .9*r, -.85*r, .85*r, -.9*r, -.85*r, -.85*r, -.9*r, .85*r)
	}
}

// series is how many colours there are; the style sheet has as many.
const series = 8

// axis maps values to a span of a drawing.
type axis struct {
	from, to float64 // in the drawing
	low, top float64 // values
	log      bool
}

func (a axis) at(v float64) float64 {
	low, top := a.low, a.top
	if a.log {
		v, low, top = math.Log(max(v, a.low)), math.Log(low), math.Log(top)
	}
	if top <= low {
		return a.from
	}
	return a.from + (a.to-a.from)*min(max((v-low)/(top-low), 0), 1)
}

// ticks are round values within the axis, about n of them.
func (a axis) ticks(n int) []float64 {
	var list []float64
	if a.log {
		for _, steps := range [][]float64{{1, 2, 5}, {1, 3}, {1}} {
			list = list[:0]
			for e := math.Floor(math.Log10(a.low)); e <= math.Log10(a.top); e++ {
				for _, m := range steps {
					if v := m * math.Pow(10, e); v >= a.low*.999 && v <= a.top*1.001 {
						list = append(list, v)
					}
				}
			}
			if len(list) <= n+1 {
				break
			}
		}
		return list
	}
	step := math.Pow(10, math.Floor(math.Log10((a.top-a.low)/float64(n))))
	for _, m := range []float64{1, 2, 5, 10} {
		if (a.top-a.low)/(step*m) <= float64(n) {
			step *= m
			break
		}
	}
	for v := math.Ceil(a.low/step) * step; v <= a.top*1.0001; v += step {
		list = append(list, v)
	}
	return list
}

// short writes a tick.
func short(v float64) string { return strconv.FormatFloat(math.Round(v*1e6)/1e6, 'f', -1, 64) }
