package wholefile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Keep writes a value as JSON that only its owner may read, and makes the file's folder where there is none.
func Keep(path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return Install(path, 0o600, data)
}

// Recall reads what Keep wrote into a pointer, and says whether there was something. What cannot be read, or what right refuses, is set aside: damaged
// is where it is then, and into holds what was read of it, to be thrown away.
func Recall(path string, into any, right func() bool) (found bool, damaged string, err error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, "", nil
	case err != nil:
		return false, "", err
	case json.Unmarshal(data, into) == nil && right():
		return true, "", nil
	}
	damaged = path + ".damaged"
	if err := os.Rename(path, damaged); err != nil {
		return false, "", fmt.Errorf("%s is damaged and cannot be set aside: %w", path, err)
	}
	return false, damaged, nil
}
