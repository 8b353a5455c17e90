//go:build !linux

package main

// noNewPrivileges has no counterpart here.
func noNewPrivileges() error { return nil }
