//go:build unix

package main

import "golang.org/x/sys/unix"

// writable reports whether this process may create files in a folder.
func writable(dir string) bool { return unix.Access(dir, unix.W_OK) == nil }
