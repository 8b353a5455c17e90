//go:build !profile

package main

// beginProfile does something in builds with the tag profile only.
func beginProfile() (end func()) { return func() {} }
