//go:build unix

package forward

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestUnixListenerIsPrivateAndRemovesItsFile(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	for _, tt := range []struct{ mode, want fs.FileMode }{{0, 0o600}, {0o660, 0o660}} {
		path := filepath.Join(t.TempDir(), "s")
		l, err := ListenHost(t.Context(), "unix", path, tt.mode)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil || info.Mode().Perm() != tt.want || info.Mode()&fs.ModeSocket == 0 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
		l.Close()
		l.Close()
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Error("Close leaves the file:", err)
		}
	}
}

// Another mode goes to the listener's own file, and to no other.
func TestUnixListenerChangesItsMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenHost(t.Context(), "unix", path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := l.(interface{ SetMode(fs.FileMode) error })
	if err := file.SetMode(0o666); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.Rename(path, path+"2"); err != nil {
		t.Fatal(err)
	}
	if err := file.SetMode(0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without its file: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := file.SetMode(0o600); err == nil || !strings.Contains(err.Error(), "another file") {
		t.Errorf("with another file: %v", err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the other file: %v, %v", info.Mode(), err)
	}
}

func TestUnixListenerReplacesOnlyWhatIsDead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := ListenHost(t.Context(), "unix", path, 0)
	if err != nil {
		t.Fatal("a dead socket is in the way:", err)
	}
	if _, err := ListenHost(t.Context(), "unix", path, 0); err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("a second listener: %v", err)
	}
	c, err := DialHost(t.Context(), "tcp", "unix:"+path)
	if err != nil {
		t.Fatal("the first one suffered:", err)
	}
	c.Close()

	// Another process has put its own socket there: it is not ours to remove.
	os.Remove(path)
	other, err := ListenHost(t.Context(), "unix", path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Error("Close removes a socket of others:", err)
	}
}

func TestUnixListenerRefuses(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	gram := filepath.Join(dir, "gram")
	listenUnixgram(t, gram)
	foreign := filepath.Join(dir, "foreign")
	if l, err := net.ListenUnix("unix", &net.UnixAddr{Name: foreign, Net: "unix"}); err == nil {
		l.SetUnlinkOnClose(false)
		l.Close()
	}
	for _, tt := range []struct{ name, path, want string }{
		{"a file", file, "not a socket"},
		{"a datagram socket in use", gram, "datagram socket"},
		{"no path", "", "path is needed"},
		{"an abstract name", "@x", "open to every user"},
		{"a long path", filepath.Join(dir, strings.Repeat("x", 108)), "choose a shorter one"},
		{"a missing folder", filepath.Join(dir, "no", "s"), "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := ListenHost(t.Context(), "unix", tt.path, 0)
			if err == nil {
				l.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, want %q", err, tt.want)
			}
		})
	}
	if err := os.Chown(foreign, 12345, -1); err == nil { // as root only
		if _, err := ListenHost(t.Context(), "unix", foreign, 0); err == nil || !strings.Contains(err.Error(), "another user") {
			t.Errorf("a dead socket of another user: %v", err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Error("the file suffered:", err)
	}
}

func TestHostAddressesThatMakeNoSense(t *testing.T) {
	for _, tt := range []struct{ network, address string }{
		{"unix", "/x"}, {"tcp4", "127.0.0.1:1"}, {"", ""}, {"tcp", "unix:"}, {"udp", "unix:"}, {"tcp", "127.0.0.1"},
	} {
		if c, err := DialHost(t.Context(), tt.network, tt.address); err == nil {
			c.Close()
			t.Errorf("dial %v: no error", tt)
		}
	}
	for _, tt := range []struct{ network, address string }{{"udp", "127.0.0.1:0"}, {"unixgram", "/x"}, {"tcp", "localhost"}} {
		if l, err := ListenHost(t.Context(), tt.network, tt.address, 0); err == nil {
			l.Close()
			t.Errorf("listen %v: no error", tt)
		}
	}
}

func TestDialHostNames(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		l := listenTCP(t, "127.0.0.1")
		_, port, _ := net.SplitHostPort(l.Addr().String())
		c, err := DialHost(t.Context(), network, "localhost:"+port)
		if err != nil {
			t.Skip("this host does not know localhost:", err)
		}
		if c.RemoteAddr().Network() != network {
			t.Errorf("%s leads to %v", network, c.RemoteAddr())
		}
		c.Close()
	}
}
