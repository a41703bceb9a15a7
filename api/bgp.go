package api

import (
	"context"
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
	Prefixes []netip.Prefix  `json:"prefixes"` // that this node tells of
	Sessions []reach.Session `json:"sessions"`
	Routes   []reach.Route   `json:"routes"`
	Refused  []reach.Refused `json:"refused"`

	RefusedMore int `json:"refused_more"` // how many more there are than Refused names
}

// Speaker is a Daemon that may speak BGP.
type Speaker interface{ BGP() BGP }

func handleBGP(mux *http.ServeMux, s Speaker) {
	mux.HandleFunc("GET /v1/bgp", func(w http.ResponseWriter, _ *http.Request) {
		b := s.BGP()
		b.Prefixes, b.Sessions, b.Routes, b.Refused = list(b.Prefixes), list(b.Sessions), list(b.Routes), list(b.Refused)
		reply(w, b)
	})
}

// BGP asks with whom prefixes are exchanged.
func (c *Client) BGP(ctx context.Context) (b BGP, err error) { return b, c.get(ctx, "bgp", &b) }
