//go:build profile

package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// profilesIn lists the files of a directory, each of which must be a complete profile.
func profilesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%s: %v", e.Name(), err)
		}
		if text, err := io.ReadAll(z); err != nil || !bytes.Contains(text, []byte("nanoseconds")) {
			t.Errorf("%s is no complete profile: %d bytes, %v", e.Name(), len(text), err)
		}
		names = append(names, e.Name())
	}
	return names
}

func TestProfilesFollowEachOther(t *testing.T) {
	dir := t.TempDir()
	stop, result := make(chan struct{}), make(chan error)
	go func() { result <- writeProfiles(stop, dir, time.Millisecond) }()
	third := filepath.Join(dir, fmt.Sprintf("%d-002.pprof", os.Getpid()))
	for deadline := time.After(20 * time.Second); ; {
		if _, err := os.Stat(third); err == nil {
			break
		}
		select {
		case err := <-result:
			t.Fatalf("it ended by itself: %v", err)
		case <-deadline:
			t.Fatal("there is no third profile")
		case <-time.After(5 * time.Millisecond):
		}
	}
	close(stop)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	for i, name := range profilesIn(t, dir) {
		if want := fmt.Sprintf("%d-%03d.pprof", os.Getpid(), i); name != want {
			t.Errorf("got %s, want %s", name, want)
		}
	}
}

func TestTheLastProfileIsCompleteAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(profileVar, dir)
	beginProfile()()
	if names := profilesIn(t, dir); len(names) != 1 {
		t.Errorf("got %q, want one profile", names)
	}
}

func TestNoProfileUnlessAskedFor(t *testing.T) {
	t.Chdir(t.TempDir())
	t.Setenv(profileVar, "")
	beginProfile()()
	if names := profilesIn(t, "."); len(names) != 0 {
		t.Errorf("got %q, want none", names)
	}
}

func TestProfileThatCannotBeWritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing")
	err := writeProfiles(make(chan struct{}), dir, time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v, want an error that names %s", err, dir)
	}
}
