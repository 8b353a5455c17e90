//go:build !unix

package control

import (
	"errors"
	"os"
)

const noFollow = 0

func makePrivate(uintptr) error { return nil }

// lockFile says that there are no locks: the probe of the socket has to do.
func lockFile(*os.File) error { return errors.ErrUnsupported }

func owner(string) string { return "" }
