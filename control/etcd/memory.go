package etcd

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
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
		m.file = filepath.Join(dir, MemoryFile)
		data, err := os.ReadFile(m.file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return nil, fmt.Errorf("etcd: %w", err)
		default:
			if err := json.Unmarshal(data, m); err == nil && m.Owner.ID != "" {
				return m, nil
			}
			// What cannot be read is as good as lost: this node is then a new owner.
			m.damaged = m.file + ".damaged"
			if err := os.Rename(m.file, m.damaged); err != nil {
				return nil, fmt.Errorf("etcd: %s is damaged and cannot be set aside: %w", m.file, err)
			}
		}
	}
	id := make([]byte, 16)
	rand.Read(id) // never fails
	m.Owner, m.Prefixes = owner{ID: hex.EncodeToString(id)}, nil
	return m, nil
}

// save writes the file whole or not at all.
func (m *memory) save() error {
	if m.file == "" {
		return nil
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(m.file), 0o700); err != nil {
		return fmt.Errorf("%w: state_dir: %w", errStore, err)
	}
	if err := wholefile.Write(m.file, 0o600, data); err != nil {
		return fmt.Errorf("%w: state_dir: %w", errStore, err)
	}
	return nil
}
