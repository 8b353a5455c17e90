package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteSecret creates a file that only its owner may read, and the folders above it. The file appears whole or not at
// all, and never in the place of another: the error then wraps fs.ErrExist.
func WriteSecret(file, text string) error {
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create %s: %w", file, err)
	}
	temp, err := writeTemp(dir, text, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", file, cause(err))
	}
	defer os.Remove(temp)
	if err = os.Link(temp, file); err != nil && !errors.Is(err, fs.ErrExist) {
		// A file system without hard links: the check and the renaming are two steps then.
		if _, statErr := os.Lstat(file); statErr == nil {
			err = fs.ErrExist
		} else {
			err = os.Rename(temp, file)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create %s: %w", file, fs.ErrExist)
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", file, err)
	}
	return syncDir(dir)
}

// replaceFile gives an existing file new content, and keeps its mode, its owner where that is possible, and a symbolic
// link that leads to it.
func replaceFile(file, text string) error {
	target, err := filepath.EvalSymlinks(file)
	if err != nil {
		return err
	}
	info, err := os.Stat(target)
	if err != nil {
		return err
	}
	temp, err := writeTemp(filepath.Dir(target), text, info.Mode().Perm())
	if err != nil {
		return fmt.Errorf("write %s: %w", file, cause(err))
	}
	defer os.Remove(temp)
	if err := keepOwner(temp, info); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := os.Rename(temp, target); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return syncDir(filepath.Dir(target))
}

// writeTemp writes text to the disk under a name that nothing reads.
func writeTemp(dir, text string, mode fs.FileMode) (name string, err error) {
	f, err := os.CreateTemp(dir, ".culvert-*.tmp") // mode 0600
	if err != nil {
		return "", err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err = f.WriteString(text); err != nil {
		return "", err
	}
	if err = f.Chmod(mode); err != nil {
		return "", err
	}
	return f.Name(), f.Sync()
}
