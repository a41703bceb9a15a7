package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"weft/perf/contender/wireguardgo"
)

// newLabWireguardGoCommand is `weft lab wireguard-go`: the process that the lab starts on each node for the contender
// of that name. People have the real command, so it is not shown.
func newLabWireguardGoCommand() *cobra.Command {
	var c wireguardgo.Config
	var settings string
	cmd := &cobra.Command{
		Use:    "wireguard-go",
		Short:  "Be the contender wireguard-go (the lab starts it)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := os.ReadFile(settings)
			if err != nil {
				return usageError{fmt.Errorf("--settings: %w", err)}
			}
			c.Settings = string(text)
			return wireguardgo.Run(cmd.Context(), c, func() { fmt.Fprintln(cmd.OutOrStdout(), "ready") })
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Device, "device", "", "the TUN device to make")
	f.IntVar(&c.MTU, "mtu", 1420, "of the device, bytes")
	f.StringVar(&settings, "settings", "", "file with keys, port and peers")
	for _, name := range []string{"device", "settings"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}
