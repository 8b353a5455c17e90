package control

import (
	"bufio"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func listen(t *testing.T, path string) *Listener {
	t.Helper()
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestSocketIsPrivateWhateverTheUmask(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o777} {
		t.Run(fmt.Sprintf("%03o", umask), func(t *testing.T) {
			base := t.TempDir()
			defer unix.Umask(unix.Umask(umask))
			if umask == 0o777 {
				base = filepath.Join(base, "x") // folders made under this umask cannot be entered but by root
				if err := os.Mkdir(base, 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(base, 0o700); err != nil {
					t.Fatal(err)
				}
			} else {
				base = filepath.Join(base, "made", "too")
			}
			path := filepath.Join(base, "control.sock")
			l := listen(t, path)
			if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
				t.Errorf("socket has mode %v, %v; want 0600", info.Mode(), err)
			}
			if info, err := os.Stat(base); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("folder has mode %v, %v; want 0700", info.Mode(), err)
			}
			l.Close()
			if left, err := os.ReadDir(base); err != nil || len(left) != 0 {
				t.Errorf("after Close there is %v, %v; want nothing", left, err)
			}
		})
	}
}

// The file must have its mode from the moment it exists, so the mode after bind and before chmod is what counts.
func TestModeIsSetBeforeTheSocketHasAName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	defer unix.Umask(unix.Umask(0))
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Fchmod(fd, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Skipf("this kernel gives the socket mode %v: the folder's mode and the check of credentials remain", info.Mode())
	}
}

func TestPathThatIsTooLong(t *testing.T) {
	_, err := Listen(filepath.Join("/tmp", strings.Repeat("x", 120)))
	wantError(t, err, "the path has 125 bytes, a socket can have 107")
}

func TestPathOfFullLengthWorks(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "c")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	listen(t, filepath.Join(dir, strings.Repeat("x", maxPathLen-len(dir)-1)))
}

func TestLivingSocketIsNotReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	l := listen(t, path)
	_, err := Listen(path)
	wantError(t, err, "another culvert is running at "+path, fmt.Sprintf("(pid %d)", os.Getpid()))

	os.Remove(path + ".lock") // by a careless user: the probe still finds the owner
	_, err = Listen(path)
	wantError(t, err, "another culvert is running at "+path)
	l.Close()
	listen(t, path).Close()
}

func TestRunningWithoutSocketFileIsNotReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	listen(t, path)
	os.Remove(path)
	_, err := Listen(path)
	wantError(t, err, "another culvert is running at "+path)
}

func TestSocketOfDeadProcessIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	// A process that listens and is killed: its socket and lock file stay.
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperListenForever$")
	cmd.Env = append(os.Environ(), "CONTROL_TEST_SOCKET="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "listening"; {
	}
	_, err = Listen(path)
	wantError(t, err, fmt.Sprintf("(pid %d)", cmd.Process.Pid))
	cmd.Process.Signal(syscall.SIGKILL)
	cmd.Wait()
	if info, err := os.Lstat(path); err != nil || info.Mode()&fs.ModeSocket == 0 {
		t.Fatalf("no stale socket, the case tests nothing: %v", err)
	}
	listen(t, path)
}

func TestHelperListenForever(t *testing.T) {
	path := os.Getenv("CONTROL_TEST_SOCKET")
	if path == "" {
		t.Skip("is run by TestSocketOfDeadProcessIsReplaced in another process")
	}
	if _, err := Listen(path); err != nil {
		t.Fatal(err)
	}
	fmt.Println("listening")
	time.Sleep(time.Minute)
}

func TestOtherFileIsNotReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Listen(path)
	wantError(t, err, path, "not a socket")
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("the file was changed")
	}
	if _, err := os.Lstat(path + ".lock"); err == nil {
		t.Error("the lock file was left behind")
	}
}

func TestLockFileThatIsALinkIsRefused(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	os.Symlink(target, filepath.Join(dir, "s.lock"))
	_, err := Listen(filepath.Join(dir, "s"))
	wantError(t, err, "control socket")
	if _, err := os.Lstat(target); err == nil {
		t.Error("the link was followed")
	}
}

// Of many that start at once, exactly one gets the socket, and it is reachable.
func TestConcurrentStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won []*Listener
	for range 20 {
		wg.Go(func() {
			l, err := Listen(path)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, l)
			} else if !strings.Contains(err.Error(), "another culvert is running") {
				t.Errorf("unexpected error %v", err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Fatalf("%d processes have the socket, want 1", len(won))
	}
	defer won[0].Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestOtherUserIsTurnedAway(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	dir, err := os.MkdirTemp("/tmp", "control")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o755)
	path := filepath.Join(dir, "control.sock")
	l := listen(t, path)
	os.Chmod(path, 0o666) // only the credentials protect it now
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	binary := filepath.Join(dir, "test")
	if b, err := os.ReadFile(os.Args[0]); err != nil || os.WriteFile(binary, b, 0o755) != nil {
		t.Fatal("copy the test binary", err)
	}
	dial := func(uid uint32) string {
		cmd := exec.Command(binary, "-test.run=^TestHelperDial$", "-test.v")
		cmd.Dir = dir
		cmd.Env = []string{"CONTROL_TEST_DIAL=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, NoSetGroups: true}}
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	if out := dial(65534); !strings.Contains(out, "dialled: EOF") {
		t.Errorf("another user got\n%s", out)
	}
	go func() { (<-accepted).Write([]byte("hello")) }()
	if out := dial(0); !strings.Contains(out, "dialled: hello") {
		t.Errorf("root got\n%s", out)
	}
	l.Close()
	for range accepted {
		t.Error("a connection of another user was handed out")
	}
}

func TestHelperDial(t *testing.T) {
	path := os.Getenv("CONTROL_TEST_DIAL")
	if path == "" {
		t.Skip("is run by TestOtherUserIsTurnedAway in another process")
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(5 * time.Second))
	buf := make([]byte, 5)
	n, err := c.Read(buf)
	if n > 0 {
		fmt.Printf("dialled: %s\n", buf[:n])
	} else {
		fmt.Printf("dialled: %v\n", err)
	}
}
