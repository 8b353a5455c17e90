//go:build profile

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"
)

// profileVar names the directory that a process of this build writes CPU profiles into. bench/compare -profile sets it.
const profileVar = "CULVERT_PROFILE"

// beginProfile writes CPU profiles, if the environment says where, until the function is called that it returns. Only builds
// with the tag profile have it: a process that is watched is slower, and a variable of an ordinary one must not make it write
// files.
func beginProfile() (end func()) {
	dir := os.Getenv(profileVar)
	if dir == "" {
		return func() {}
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		if err := writeProfiles(stop, dir, time.Second); err != nil {
			fmt.Fprintf(os.Stderr, "culvert: %s: %v\n", profileVar, err)
		}
	}()
	return func() {
		close(stop)
		<-done
	}
}

// writeProfiles writes one profile after the other into the directory, as PID-NNN.pprof, until stop is closed, which ends the
// last. They are short because a process may be killed, and then loses the one that it is at. The number of the process keeps
// those apart that have the same environment.
func writeProfiles(stop <-chan struct{}, dir string, length time.Duration) error {
	for i := 0; ; i++ {
		if err := writeProfile(stop, filepath.Join(dir, fmt.Sprintf("%d-%03d.pprof", os.Getpid(), i)), length); err != nil {
			return err
		}
		select {
		case <-stop:
			return nil
		default:
		}
	}
}

// writeProfile writes a profile that begins now. The file gets its name when it is complete.
func writeProfile(stop <-chan struct{}, path string, length time.Duration) error {
	var b bytes.Buffer // not the file itself: the runtime would not tell of a write that fails
	if err := pprof.StartCPUProfile(&b); err != nil {
		return fmt.Errorf("start a profile: %w", err)
	}
	select {
	case <-stop:
	case <-time.After(length):
	}
	pprof.StopCPUProfile()
	unfinished := path + ".tmp"
	if err := os.WriteFile(unfinished, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write a profile: %w", err)
	}
	if err := os.Rename(unfinished, path); err != nil {
		return fmt.Errorf("write a profile: %w", err)
	}
	return nil
}
