package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

const longestFile = 1 << 20 // far above any real one; keeps a wrong path such as /dev/zero harmless

// content is what a file holds, and who may read it.
type content struct {
	bytes   []byte
	mode    fs.FileMode
	foreign bool // the file belongs to another user than this process's
}

// readFile reads a file of sane size.
func readFile(name string) (*content, error) { return readLimited(name, longestFile) }

// readLimited reads a file of at most limit bytes, which is whole MiB.
func readLimited(name string, limit int) (*content, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err == nil && len(b) > limit {
		err = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("larger than %d MiB", limit>>20)}
	}
	return &content{b, info.Mode(), isForeign(info)}, err
}

// cause strips the path from a file error that is reported under that path anyway.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
