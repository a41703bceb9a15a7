package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"weft/api"
	"weft/insight/filter"
	"weft/internal/wholefile"
)

// newCaptureCommand is `weft capture`: what passes the lanes, for tcpdump and Wireshark.
func newCaptureCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "capture",
		Short: "Write what passes a userspace mode's lanes, and what dies there, as pcapng for tcpdump and Wireshark",
		Long: `Write the packets of the daemon's lanes as a pcapng file, until interrupted. It has three interfaces:
inside, as the pods' side has the packets; outside, as the underlay has them, sealed where they are
sealed; and drops, those that weft dropped, each with the reason in its comment. Outer headers of
AF_XDP are the real ones; where the kernel makes them, addresses and ports are, and MACs are zero.
Packets of AF_XDP never reach tcpdump otherwise. While nobody captures, it costs nothing.

Filter expressions are much like tcpdump's: [src|dst] host ADDRESS, net PREFIX, port N[-N]; proto N,
tcp, udp, icmp, icmp6, sctp, esp, ip, ip6, arp; drop, drop NAME; and, or, not, parentheses. Where a
frame of the outside is not sealed, they look at what it carries too.`,
		Example: `  weft capture | tcpdump -n -r -
  weft capture -w weft.pcapng --filter "host 10.244.1.5 and tcp port 80" --for 30s
  weft capture --drops --count 10 -w drops.pcapng`,
		Args: cobra.NoArgs,
	}
	socket, form := socketFlag(c), formatFlag(c)
	var r api.CaptureRequest
	file := c.Flags().StringP("write", "w", "-", "the file to write; - is standard output, for a pipe")
	c.Flags().StringVar(&r.Filter, "filter", "", "which packets; an empty one is all")
	c.Flags().Uint64Var(&r.Count, "count", 0, "end after so many packets; 0 = never")
	c.Flags().DurationVar(&r.For, "for", 0, "end after this long; 0 = never")
	c.Flags().BoolVar(&r.Inside, "inside", false, "only the inside (and what else is named so)")
	c.Flags().BoolVar(&r.Outside, "outside", false, "only the outside (and what else is named so)")
	c.Flags().BoolVar(&r.Drops, "drops", false, "only what died (and what else is named so)")
	c.Flags().IntVar(&r.SnapLen, "snaplen", 0, "bytes of each packet; 0 = whole packets, of super-packets the beginning")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if _, err := filter.Parse(r.Filter); err != nil {
			return usageError{err}
		}
		if r.For < 0 || r.SnapLen < 0 {
			return usageError{errors.New("--for and --snaplen: write what is above 0, or 0 for no limit")}
		}
		return capture(c, *socket, *file, *form, r)
	}
	return c
}

// capture writes the file and then says how it went: on standard output, unless that is the file.
func capture(c *cobra.Command, socket, file string, form format, r api.CaptureRequest) error {
	out, say := c.OutOrStdout(), c.ErrOrStderr()
	if file == "-" {
		if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return usageError{errors.New("a pcapng file is not for a terminal: write -w FILE, or pipe it into `tcpdump -n -r -`")}
		}
	}
	client := api.NewClient(socket)
	defer client.Close()
	to, done := out, func() error { return nil }
	if file != "-" {
		later := &wholefile.Stream{Path: file, Perm: 0o600} // it holds what people said
		to, done = later, later.Close
		if form == asJSON {
			say = out
		}
	}
	s, err := client.Capture(c.Context(), r, to, func() {
		if form == asText {
			fmt.Fprintln(say, "capturing; interrupt to end")
		}
	})
	err = errors.Join(err, done())
	var refused *api.Error
	switch {
	case errors.As(err, &refused) && refused.Code == api.CodeUnsupported:
		return unsupportedError{err}
	case errors.As(err, &refused) && refused.Code == api.CodeInvalid:
		return usageError{err}
	case err != nil:
		return err
	case form == asJSON:
		err = writeJSON(say, s)
	default:
		_, err = fmt.Fprintf(say, "%d packets captured, %d lost because the file could not follow\n", s.Frames, s.Lost)
	}
	return errors.Join(err, c.Context().Err()) // interrupted, it ended well, but not by itself
}
