package relayd

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"culvert.dev/culvert/internal/config"
	"culvert.dev/culvert/traversal/relay"
)

// A folder in the place of the file cannot be read by anybody, root included.
func TestAllowFileThatCannotBeReadAdmitsNobody(t *testing.T) {
	inFile, inConf := newKey(t), newKey(t)
	c := setUp(t, strings.Replace(quiet, "[STUN]", "Allow = "+inConf.Public().String()+"\n[STUN]", 1))
	allow(t, c, inFile)
	r := start(t, c)
	one, other := dial(t, inFile, r), dial(t, inConf, r)

	file := filepath.Join(c.State, "allowed.keys")
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	one.ended(t)
	eventually(t, "the trouble shows", func() bool { return r.Status().AllowError != "" })
	if err := r.Health(); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("health: %v", err)
	}
	if _, err := other.Ping(t.Context()); err != nil {
		t.Errorf("who is named by the configuration: %v", err)
	}
	if _, err := (&relay.Dialer{Key: inFile}).Dial(t.Context(), server(t, r)); err == nil {
		t.Error("admitted by a file that cannot be read")
	}
	var text strings.Builder
	if err := r.Status().WriteText(&text, someDay); err != nil || !strings.Contains(text.String(), "NOT HEEDED: read allow file: ") {
		t.Errorf("status:\n%s", text.String())
	}

	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the file is read again", func() bool { return r.Status().AllowError == "" && r.Health() == nil && r.Status().Allowed == 2 })
	dial(t, inFile, r)
}

func TestProblemsOfAnAllowFile(t *testing.T) {
	for _, c := range []struct {
		err           error
		closed, again bool
	}{
		{config.Errors{{File: "f", Line: 2, Message: "nonsense"}}, false, false},
		{&fs.PathError{Op: "open", Path: "f", Err: syscall.EACCES}, true, true},
		{&fs.PathError{Op: "read", Path: "f", Err: syscall.EISDIR}, true, true},
		{errors.New("larger than 16 MiB"), true, true},
		{&fs.PathError{Op: "open", Path: "f", Err: syscall.EMFILE}, false, true},
		{&fs.PathError{Op: "read", Path: "f", Err: syscall.EIO}, false, true},
	} {
		if p := problemOf(c.err); p.closed != c.closed || p.again != c.again || p.text == "" {
			t.Errorf("%v: %+v", c.err, *p)
		}
	}
}

func TestChangedModeIsAChangeOfTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	write(t, file, "x")
	w := watchOf(file)
	if err := os.Chmod(file, 0o400); err != nil {
		t.Fatal(err)
	}
	if first, second, third := w.changed(file), w.changed(file), w.changed(file); first || !second || third {
		t.Errorf("changed: %v, %v, %v; want it at the second look", first, second, third)
	}
}

func TestLimitsFollowAReload(t *testing.T) {
	c := setUp(t, quiet)
	r := start(t, c)
	stranger := newKey(t)
	if _, err := (&relay.Dialer{Key: stranger}).Dial(t.Context(), server(t, r)); err == nil {
		t.Fatal("a relay without keys admits")
	}
	write(t, c.File, strings.Replace(quiet, "[STUN]", "Open = yes\nMaxClients = 7\nMaxPerAddress = 5\n[STUN]", 1))
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	if st := r.Status(); !st.Open || st.Limits != (LimitStatus{RateBits: int64(config.DefaultOpenRate), MaxClients: 7, MaxPerAddress: 5}) {
		t.Errorf("status: open %v, %+v", st.Open, st.Limits)
	}
	conn := dial(t, stranger, r)
	write(t, c.File, strings.Replace(quiet, "[STUN]", "Rate = 2Mbit\n[STUN]", 1))
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	conn.ended(t)
	if st := r.Status(); st.Open || st.Limits.RateBits != 2_000_000 || st.Limits.MaxPerAddress != config.DefaultMaxPerAddress {
		t.Errorf("status: open %v, %+v", st.Open, st.Limits)
	}
}
