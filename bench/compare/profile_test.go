//go:build linux

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLoadsOfAProfile(t *testing.T) {
	names := func(args ...string) (list []string) {
		o, err := parseOptions(append(args, "-profile", "x.pgo"), nil)
		if err != nil {
			t.Fatal(err)
		}
		selected, err := o.selected()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range selected {
			list = append(list, l.name)
		}
		return list
	}
	want := []string{"tcp-1-up", "tcp-1-down", "tcp-4-up", "tcp-4-down", "udp-64-up", "udp-64-down", "udp-1200-up", "udp-1200-down",
		"iperf3-udp-1200-down", "connections"}
	if got := names(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := names("-only", "^(rtt-idle|tcp-1-up)$"); !slices.Equal(got, []string{"tcp-1-up", "rtt-idle"}) {
		t.Errorf("with -only: got %q", got)
	}
}

func TestOptionsOfAProfile(t *testing.T) {
	o, err := parseOptions([]string{"-profile", "x.pgo"}, nil)
	if err != nil || o.profile != "x.pgo" || o.Length != 5*time.Second {
		t.Errorf("got %+v, %v", o, err)
	}
	if o, err = parseOptions([]string{"-profile", "x.pgo", "-length", "2s", "-ip", "6", "-quick"}, nil); err != nil || o.Family != 6 {
		t.Errorf("got %+v, %v", o, err)
	}
	for _, bad := range []string{"-rounds=2", "-warmup=1s", "-out=x", "-exit=x=true", "-exit-root=x=true"} {
		name, _, _ := strings.Cut(bad, "=")
		if _, err := parseOptions([]string{"-profile", "x.pgo", bad}, nil); err == nil || !strings.Contains(err.Error(), name+" ") {
			t.Errorf("%s: got %v, want an error that names it", bad, err)
		}
	}
	if o, err := parseOptions([]string{"-rounds", "2"}, nil); err != nil || o.profile != "" {
		t.Errorf("without -profile: got %+v, %v", o, err)
	}
}

func TestTargetThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "default.pgo")
	for path, want := range map[string]string{
		filepath.Join(dir, "missing", "default.pgo"): "missing",
		dir:                 "it is no file",
		"/run/user/0/x.pgo": "/run",
	} {
		if err := checkTarget(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %q", path, err, want)
		}
	}
	if err := os.WriteFile(good, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkTarget(good); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(good); err != nil || string(b) != "old" {
		t.Errorf("the file that was there is %q now, %v", b, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v was left, %v", left, err)
	}
}

func TestProfileUse(t *testing.T) {
	got := profileUse("/elsewhere/x.pgo", 10, 20001)
	for _, want := range []string{"10 loads", "21 kB", "go build -pgo=/elsewhere/x.pgo ./cmd/culvert"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
}

// The profiler and this command must mean the same.
func TestProfileVariable(t *testing.T) {
	source, err := os.ReadFile("../../cmd/culvert/profile.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"//go:build profile\n", `const profileVar = "` + profileVar + `"`} {
		if !strings.Contains(string(source), want) {
			t.Errorf("cmd/culvert/profile.go lacks %s", want)
		}
	}
	if p := profiled(); p.Flags != "-tags=profile -pgo=off" || p.Name != "culvert" {
		t.Errorf("got %+v", p)
	}
}
