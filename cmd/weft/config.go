package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"weft/internal/config"
	"weft/node/daemon"
)

// newConfigCommand is `weft config`.
func newConfigCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Look at the configuration"}
	c.AddCommand(newConfigShowCommand())
	return c
}

func newConfigShowCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "show",
		Short: "Print the effective values and where each came from",
		Long: `Print every key of the configuration with the value a daemon started now would use, and where
the value came from: the file, the default, or this machine and why. It needs no running daemon.`,
		Args: cobra.NoArgs,
	}
	file, form := configFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, parts, err := load(*file)
		if err != nil {
			return err
		}
		if err := daemon.DetectUnderlay(cfg, parts); err != nil {
			fmt.Fprintf(&plainWriter{to: c.ErrOrStderr()}, "weft: the underlay is not detected: %v\n", err)
		}
		values := cfg.Show()
		return show(c.OutOrStdout(), *form, values, func(w io.Writer) {
			row(w, "KEY", "VALUE", "FROM")
			for _, v := range values {
				row(w, v.Key, written(v.Value), origin(v))
			}
		})
	}
	return c
}

// written prints a value so that an empty one can be seen.
func written(v any) string {
	if s := fmt.Sprint(v); s != "" {
		return s
	}
	return `""`
}

func origin(v config.Shown) string {
	if v.Why == "" {
		return v.From
	}
	return v.From + ": " + v.Why
}
