//go:build !unix

package main

// writable is asked for /var/lib alone, which exists on Unix systems only.
func writable(string) bool { return false }
