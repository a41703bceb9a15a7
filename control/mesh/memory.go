package mesh

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"time"

	"weft/internal/wholefile"
)

// MemoryFile is the name, in the state directory, of what a node remembers across restarts: its identity is a secret.
const MemoryFile = "mesh.json"

// memory is who this node is to the others, and what it had.
type memory struct {
	Seed   []byte    `json:"seed"` // of its Ed25519 key (RFC 8032)
	Seq    uint64    `json:"seq"`  // of its newest record
	Born   uint64    `json:"born"`
	Claims []claim   `json:"claims"`
	Heard  time.Time `json:"heard"` // when it was last one of the mesh

	file    string // "" = nothing is kept
	damaged string // where a file was set aside that could not be read, "" = none
}

// remember reads the state directory, or makes a new identity.
func remember(dir string) (*memory, error) {
	m := &memory{}
	if dir != "" {
		file := filepath.Join(dir, MemoryFile)
		found, damaged, err := wholefile.Recall(file, m, m.right)
		switch {
		case err != nil:
			return nil, fmt.Errorf("mesh: %w", err)
		case found:
			m.file = file
			return m, nil
		}
		// What cannot be read is as good as lost: this node is then a stranger that has the name.
		m = &memory{file: file, damaged: damaged}
	}
	m.Seed = make([]byte, ed25519.SeedSize)
	rand.Read(m.Seed) // never fails
	m.Born = unborn
	return m, nil
}

func (m *memory) right() bool {
	if len(m.Seed) != ed25519.SeedSize || m.Seq >= mostStamp || m.Born > mostStamp || len(m.Claims) > mostList {
		return false
	}
	for _, c := range m.Claims {
		if !c.Prefix.IsValid() || c.Prefix != c.Prefix.Masked() || c.Stamp > mostStamp {
			return false
		}
	}
	return true
}

// save writes the file whole or not at all.
func (m *memory) save() error {
	if m.file == "" {
		return nil
	}
	if err := wholefile.Keep(m.file, m); err != nil {
		return fmt.Errorf("mesh: state_dir: %w", err)
	}
	return nil
}
