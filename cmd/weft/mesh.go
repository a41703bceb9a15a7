package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/api"
	"weft/catalog"
	"weft/internal/config"
	"weft/internal/wholefile"
)

// newMeshCommand is `weft mesh`.
func newMeshCommand() *cobra.Command {
	c := &cobra.Command{Use: "mesh", Short: "A cluster without a store (control.kind mesh)"}
	c.AddCommand(newMeshStatusCommand(), newMeshTopologyCommand())
	return c
}

func newMeshStatusCommand() *cobra.Command {
	c := &cobra.Command{Use: "status", Short: "Whom this node knows, whom it hears, and whose the prefixes are", Args: cobra.NoArgs}
	socket, form := socketFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		m, err := ask(c.Context(), *socket, (*api.Client).Mesh)
		if err != nil {
			return err
		}
		if !m.Enabled && *form == asText {
			fmt.Fprintln(c.OutOrStdout(), "This node is not in a mesh: control.kind is another one; `weft join` writes a configuration")
			return nil
		}
		return show(c.OutOrStdout(), *form, m, func(w io.Writer) { printMesh(w, m) })
	}
	return c
}

func printMesh(w io.Writer, m api.Mesh) {
	at := "nowhere"
	if m.Address.IsValid() {
		at = m.Address.String()
	}
	row(w, "node", m.Node)
	row(w, "hears at", at)
	row(w, "nodes", fmt.Sprintf("%d known, %d heard, %d expected", m.Known, m.Live, m.Expect))
	if m.Reason != "" {
		row(w, "not in the mesh", m.Reason)
	}
	if m.Waiting != "" {
		row(w, "no prefix yet", m.Waiting)
	}
	row(w, "refused", fmt.Sprintf("%d by password, %d by clock", m.RefusedPassword, m.RefusedClock))
	if len(m.Nodes) == 0 {
		return
	}
	fmt.Fprintln(w)
	row(w, "NODE", "ADDRESS", "HEARD", "PREFIXES", "CLAIMED", "ID")
	for _, n := range m.Nodes {
		heard := "yes"
		switch {
		case n.Live:
		case n.Silent != nil:
			heard = "last " + age(*n.Silent, time.Now())
		default:
			heard = "no"
		}
		row(w, n.Name+star(n.Self), n.Address, heard, commas(n.Prefixes), commas(n.Claims), n.ID)
	}
}

// newForgetCommand is `weft forget`.
func newForgetCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "forget NODE",
		Short: "Free the prefixes of a node of the mesh that is gone",
		Long: `Free the prefixes of a node that is gone for good, on all nodes of the mesh, without waiting for
control.mesh.forget_after. A node that is heard is not forgotten: stop its daemon first.`,
		Args: cobra.ExactArgs(1),
	}
	socket, form := socketFlag(c), formatFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		_, err := ask(c.Context(), *socket, func(client *api.Client, ctx context.Context) (struct{}, error) {
			return struct{}{}, client.Forget(ctx, api.ForgetRequest{Node: args[0]})
		})
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *form, struct {
			Forgotten string `json:"forgotten"`
		}{args[0]}, func(w io.Writer) { row(w, args[0], "is forgotten") })
	}
	return c
}

// newJoinCommand is `weft join`.
func newJoinCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "join [HOST[:PORT]...]",
		Short: "Write the configuration of a node of a mesh",
		Long: `Write the configuration of a node that joins the mesh that the named nodes are in, or, without one, of
the first node. The cluster's password has to be in a file of mode 0600, the same on all nodes. A
configuration that exists is not changed. Nothing is started and nobody is asked.`,
		Example: "  openssl rand -base64 32 | install -m 0600 /dev/stdin /etc/weft/password\n  weft join                  # on the first node\n  weft join 192.0.2.1        # on the others, with the same password",
	}
	file, form := configFlag(c), formatFlag(c)
	network := c.Flags().StringSlice("network", []string{"10.244.0.0/16"}, "inner prefixes of the whole overlay, the same on all nodes (network.prefixes)")
	password := c.Flags().String("password-file", "/etc/weft/password", "the cluster's password (encryption.psk_file)")
	expect := c.Flags().Int("expect", 0, "how many nodes there will be, at least (control.mesh.expect)")
	cipher := c.Flags().String("cipher", "auto", "what traffic is sealed with, none = nothing (encryption.cipher)")
	c.RunE = func(c *cobra.Command, hosts []string) error {
		for _, h := range hosts {
			if wrong := config.WrongHost(h); wrong != "" {
				return usageError{errors.New(wrong)}
			}
		}
		prefixes, err := parsePrefixes(*network)
		if err != nil {
			return usageError{fmt.Errorf("--network: %w", err)}
		}
		secret, err := filepath.Abs(*password) // a daemon has another working directory
		if err != nil {
			return err
		}
		text := fmt.Sprintf("network: {prefixes: [%s]}\nencryption: {cipher: %s, psk_file: %s}\ncontrol: {kind: mesh, mesh: {join: [%s], expect: %d}}\n",
			quoted(prefixes), strconv.Quote(*cipher), strconv.Quote(secret), quoted(hosts), *expect)
		cfg, err := config.Parse(*file, []byte(text), catalog.Built())
		if err != nil {
			return usageError{err}
		}
		if err := catalog.CheckMesh(cfg); err != nil {
			return configError{err}
		}
		if err := os.MkdirAll(filepath.Dir(*file), 0o755); err != nil {
			return err
		}
		if err := wholefile.Create(*file, 0o644, []byte(text)); errors.Is(err, fs.ErrExist) {
			return configError{fmt.Errorf("%s exists, and stays as it is: edit it, or move it away", *file)}
		} else if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *form, struct {
			File string   `json:"file"`
			Join []string `json:"join"`
		}{*file, append([]string{}, hosts...)}, func(w io.Writer) {
			row(w, fmt.Sprintf("%s is written; go on with `weft daemon --config %s`", *file, *file))
		})
	}
	return c
}

// quoted writes the inside of a list of strings in YAML.
func quoted[T any](list []T) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = strconv.Quote(fmt.Sprint(v))
	}
	return strings.Join(words, ", ")
}
