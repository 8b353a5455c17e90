//go:build unix

package config

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// To open a pipe is to wait until somebody writes to it.
func TestAllowFileThatIsAPipeIsRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "allowed.keys")
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Skipf("SKIP no pipes here: %v", err)
	}
	if _, err := ParseAllowed(file); err == nil || !strings.Contains(err.Error(), file+": is a pipe") {
		t.Errorf("read: %v", err)
	}
	key, err := parsePublic(peerKey1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := AddAllowed(file, key, ""); err == nil {
		t.Error("a pipe was written to")
	}
}

// The relay runs as another user than root, who edits its list.
func TestAllowFileThatRootMakesIsTheFoldersOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIP root alone gives files away")
	}
	const relay = 65534
	dir := t.TempDir()
	if err := os.Chown(dir, relay, relay); err != nil {
		t.Skipf("SKIP files cannot be given away here: %v", err)
	}
	key, err := parsePublic(peerKey1)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "allowed.keys")
	if _, err := AddAllowed(file, key, ""); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != relay || st.Gid != relay || info.Mode() != 0o600 {
		t.Errorf("user %d, group %d, mode %v", st.Uid, st.Gid, info.Mode())
	}
}
