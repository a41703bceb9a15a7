package api

import (
	"context"
	"errors"
	"net/http"
	"net/netip"

	"weft/reach"
)

// BGP is with whom a node exchanges prefixes by BGP, and what came of it.
type BGP struct {
	Enabled  bool            `json:"enabled"`
	AS       uint32          `json:"as"`
	Mesh     bool            `json:"mesh"`     // with every other node
	Settled  bool            `json:"settled"`  // the peers have told of all; before, routes that the kernel had are kept
	Drained  bool            `json:"drained"`  // it tells of none of its prefixes
	Prefixes []netip.Prefix  `json:"prefixes"` // that this node tells of
	Sessions []reach.Session `json:"sessions"`
	Routes   []reach.Route   `json:"routes"`
	Refused  []reach.Refused `json:"refused"`

	RefusedMore int `json:"refused_more"` // how many more there are than Refused names
}

// Speaker is a Daemon that may speak BGP.
type Speaker interface {
	BGP() BGP
	// Drain has the node tell of none of its prefixes, or of them again, also after a restart. Where BGP is off it is ErrNoBGP.
	Drain(on bool) error
}

// ErrNoBGP says that a node does not speak BGP.
var ErrNoBGP = errors.New("BGP is off on this node: set bgp.as in weft.yaml")

func handleBGP(mux *http.ServeMux, s Speaker) {
	mux.HandleFunc("GET /v1/bgp", func(w http.ResponseWriter, _ *http.Request) {
		b := s.BGP()
		b.Prefixes, b.Sessions, b.Routes, b.Refused = list(b.Prefixes), list(b.Sessions), list(b.Routes), list(b.Refused)
		reply(w, b)
	})
	drain := func(on bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			switch err := s.Drain(on); {
			case errors.Is(err, ErrNoBGP):
				send(w, http.StatusNotImplemented, failure{Error: err.Error()})
			case err != nil:
				send(w, http.StatusInternalServerError, failure{Error: err.Error()})
			default:
				reply(w, struct{}{})
			}
		}
	}
	mux.HandleFunc("POST /v1/drain", drain(true))
	mux.HandleFunc("DELETE /v1/drain", drain(false))
}

// Drain has the node tell of none of its prefixes, or of them again.
func (c *Client) Drain(ctx context.Context, on bool) error {
	method := http.MethodDelete
	if on {
		method = http.MethodPost
	}
	return c.ask(ctx, method, "drain", nil, &struct{}{})
}

// BGP asks with whom prefixes are exchanged.
func (c *Client) BGP(ctx context.Context) (b BGP, err error) { return b, c.get(ctx, "bgp", &b) }
