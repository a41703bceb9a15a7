package etcd

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path/filepath"

	"weft/internal/wholefile"
)

// MemoryFile is the name, in the state directory, of what a node remembers across restarts.
const MemoryFile = "etcd.json"

// memory is who this node is to the store and what it held last.
type memory struct {
	Owner    owner          `json:"owner"`
	Prefixes []netip.Prefix `json:"prefixes"`

	file    string // "" = nothing is kept
	damaged string // where a file was set aside that could not be read, "" = none
}

// remember reads the state directory, or makes a new owner.
func remember(dir string) (*memory, error) {
	m := &memory{}
	if dir != "" {
		file := filepath.Join(dir, MemoryFile)
		found, damaged, err := wholefile.Recall(file, m, func() bool { return m.Owner.ID != "" })
		switch {
		case err != nil:
			return nil, fmt.Errorf("etcd: %w", err)
		case found:
			m.file = file
			return m, nil
		}
		// What cannot be read is as good as lost: this node is then a new owner.
		m = &memory{file: file, damaged: damaged}
	}
	id := make([]byte, 16)
	rand.Read(id) // never fails
	m.Owner = owner{ID: hex.EncodeToString(id)}
	return m, nil
}

// save writes the file whole or not at all.
func (m *memory) save() error {
	if m.file == "" {
		return nil
	}
	if err := wholefile.Keep(m.file, m); err != nil {
		return fmt.Errorf("%w: state_dir: %w", errStore, err)
	}
	return nil
}
