package main

import (
	"errors"
	"io"
	"io/fs"

	"github.com/spf13/cobra"

	"weft/catalog"
	"weft/internal/config"
)

// newKeysCommand is `weft keys`.
func newKeysCommand() *cobra.Command {
	c := &cobra.Command{Use: "keys", Short: "This node's keys for sealed traffic"}
	keep := false
	gen := newKeyCommand("gen", "Make this node's private key and print the public one",
		`Make a private key in a new file of mode 0600 and print the public key, which goes into the list of
nodes as public_key. An existing file is never overwritten. With encryption.psk_file on all nodes, and no
public keys published, no keys need to be made: they follow from the password and the nodes' names.`, func(file string) (string, error) {
			public, err := catalog.GenerateKey(file)
			if keep && errors.Is(err, fs.ErrExist) {
				return catalog.ShowKey(file)
			}
			return public, err
		})
	gen.Flags().BoolVar(&keep, "if-missing", false, "where the file exists, print the public key of what is in it")
	c.AddCommand(gen, newKeyCommand("show", "Print this node's public key", "Print the public key of a private key file.", catalog.ShowKey))
	return c
}

// keyAnswer is what the commands print with -o json.
type keyAnswer struct {
	File      string `json:"file"`
	PublicKey string `json:"public_key"`
}

func newKeyCommand(use, short, long string, do func(file string) (string, error)) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Args: cobra.NoArgs}
	file, form := c.Flags().String("file", config.DefaultKeyFile, "the private key (encryption.key_file)"), formatFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		public, err := do(*file)
		if err != nil {
			return err
		}
		return show(c.OutOrStdout(), *form, keyAnswer{*file, public}, func(w io.Writer) { row(w, public) })
	}
	return c
}
