package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"weft/internal/config"
	"weft/node/daemon"
)

// newCleanupCommand is `weft cleanup`.
func newCleanupCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove all that weft left on this machine",
		Long: `Remove from this network namespace every interface and nftables table whose name starts with weft
and every route of protocol 87, also the one that keeps overlay traffic from leaving in clear; then
the daemon's lock file and a dead socket. Keys and configuration stay. It refuses while a daemon
runs, and is harmless to repeat.`,
		Args: cobra.NoArgs,
	}
	stateDir := c.Flags().String("state-dir", config.DefaultStateDir, "the daemon's state directory (state_dir)")
	socket, form := socketFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		removed, err := daemon.Cleanup(*stateDir, *socket, zap.NewNop())
		if removed == nil {
			removed = []string{}
		}
		return errors.Join(show(c.OutOrStdout(), *form, removed, func(w io.Writer) {
			for _, what := range removed {
				fmt.Fprintln(w, "removed", what)
			}
			if len(removed) == 0 && err == nil {
				fmt.Fprintln(w, "nothing to remove")
			}
		}), err)
	}
	return c
}
