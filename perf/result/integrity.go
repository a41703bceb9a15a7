package result

import (
	"slices"
	"strings"

	"weft/perf/probe"
)

// maxDamage is how many examples of corrupt bytes a test's account keeps.
const maxDamage = 6

// AddIntegrity adds what a sample verified to the account of its contender, path and test.
func (r *Result) AddIntegrity(name, path string, t probe.Selection, found probe.Integrity) {
	i := slices.IndexFunc(r.Integrity, func(o Integrity) bool {
		return o.Contender == name && o.Path == path && o.Test == t.Test && t.String() == probe.Selection{Test: o.Test, Params: o.Params}.String()
	})
	if i < 0 {
		i = len(r.Integrity)
		r.Integrity = append(r.Integrity, Integrity{Contender: name, Path: path, Test: t.Test, Params: t.Params})
	}
	account := &r.Integrity[i]
	account.Add(found)
	account.Damage = account.Damage[:min(len(account.Damage), maxDamage)]
	account.OK = account.Corrupt == 0
}

// Verified adds up all accounts; its damage names contender and test.
func (r *Result) Verified() (sum probe.Integrity) {
	for _, i := range r.Integrity {
		one := i.Integrity
		one.Damage = nil
		for _, d := range i.Damage {
			one.Damage = append(one.Damage, On(i.Contender, i.Path)+" "+probe.Selection{Test: i.Test, Params: i.Params}.String()+": "+d)
		}
		sum.Add(one)
	}
	return sum
}

// arrow is between the ends of a path.
const arrow = " → "

// Path names the path from one host to another.
func Path(from, to string) string { return from + arrow + to }

// Ends are the hosts of a path; "" where there is only one path.
func Ends(path string) (from, to string) {
	from, to, _ = strings.Cut(path, arrow)
	return from, to
}

// On names a contender and the path that it was measured on.
func On(contender, path string) string {
	if path == "" {
		return contender
	}
	return contender + " from " + path
}
