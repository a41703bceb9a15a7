package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"weft/api"
	"weft/catalog/mode"
	"weft/hostnet"
	"weft/insight/doctor"
	"weft/node/daemon"
)

// newDoctorCommand is `weft doctor`.
func newDoctorCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "doctor",
		Short: "What this machine can do for the overlay, and what is wrong, with remedies",
		Long: `Look at this machine and, where it runs, at the daemon: what the kernel can do, what the network's
settings will do to the overlay, who has the tunnel's port. Where the daemon runs, every peer is asked
for echo replies through the tunnel, small ones and ones of the full inner MTU; one that gives none is
asked outside of it, and on its UDP port. It changes nothing and works with and without a
configuration and a daemon. Exit code 1 when something is wrong, 3 when the machine lacks
what the configured mode needs.`,
		Args: cobra.NoArgs,
	}
	socket, file, form := socketFlag(c), configFlag(c), formatFlag(c)
	visit := c.Flags().Bool("peers", true, "send echo requests to the peers")
	c.RunE = func(c *cobra.Command, _ []string) error {
		subject := doctor.Subject{Modes: mode.All(), Client: api.NewClient(*socket), Visit: *visit}
		defer subject.Client.Close()
		findings := examineConfig(&subject, *file, c.Flags().Changed("config"))
		findings = append(findings, doctor.Examine(c.Context(), subject)...)
		if err := show(c.OutOrStdout(), *form, findings, func(w io.Writer) { printFindings(w, findings) }); err != nil {
			return err
		}
		return verdict(findings)
	}
	return c
}

// examineConfig reads the configuration and the nodes; without a configuration that was not asked
// for the rest can still be looked at.
func examineConfig(p *doctor.Subject, file string, asked bool) []doctor.Finding {
	const name = "configuration"
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) && !asked {
		return []doctor.Finding{{Name: name, Level: doctor.Note, Found: file + " does not exist", Remedy: "write it; `network: 10.244.0.0/16` is enough"}}
	}
	cfg, parts, err := load(file)
	p.Config = cfg
	if err == nil {
		err = daemon.Check(cfg, parts, zap.NewNop())
	}
	if err == nil {
		var h *hostnet.Host
		if h, err = hostnet.New(nil); err == nil {
			p.Self, p.Nodes, err = daemon.Cluster(cfg, parts, h)
			h.Close()
		}
	}
	if err != nil {
		return []doctor.Finding{{Name: name, Level: doctor.Wrong, Found: err.Error(), Remedy: "correct it; `weft daemon --check` looks again"}}
	}
	return []doctor.Finding{{Name: name, Level: doctor.OK, Found: file}}
}

func printFindings(w io.Writer, findings []doctor.Finding) {
	for _, f := range findings {
		row(w, f.Level, f.Name, strings.ReplaceAll(f.Found, "\n", "; "))
		if f.Remedy != "" {
			row(w, "", "", "→ "+f.Remedy)
		}
	}
}

// verdict is the error that the worst finding makes, nil when nothing is wrong.
func verdict(findings []doctor.Finding) error {
	count := map[doctor.Level]int{}
	for _, f := range findings {
		count[f.Level]++
	}
	switch {
	case count[doctor.Missing] > 0:
		return unsupportedError{fmt.Errorf("doctor: this machine lacks %d things that are needed", count[doctor.Missing])}
	case count[doctor.Wrong] > 0:
		return fmt.Errorf("doctor: %d things are wrong", count[doctor.Wrong])
	}
	return nil
}
