//go:build linux

package lab

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is a program that runs in a node until its test ends. Its output is shown if the test fails.
type Process struct {
	PID int

	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{} // closed when the process has ended
	err  error         // valid once done is closed
}

// logBuffer keeps what a process prints. Writes and reads may come from different goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// command prepares a program for the node: with the node's resolver, if it has one, in a mount namespace of its own.
func (x *Node) command(name string, args ...string) *exec.Cmd {
	if x.resolver == "" {
		return exec.Command(name, args...)
	}
	script := `mount --bind "$1" /etc/resolv.conf && shift && exec "$@"`
	cmd := exec.Command("sh", append([]string{"-c", script, "sh", x.resolver, name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd
}

// Exec runs a program in the node to its end and returns what it printed to stdout and stderr, and its exit status as an error.
func (x *Node) Exec(stdin string, name string, args ...string) (string, error) {
	cmd := x.command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out logBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := x.Do(cmd.Start); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// Run runs a program in the node and fails the test unless it succeeds. It returns the output.
func (x *Node) Run(tb TB, name string, args ...string) string {
	tb.Helper()
	out, err := x.Exec("", name, args...)
	if err != nil {
		tb.Fatalf("node %s: %s %s: %v\n%s", x.Name, name, strings.Join(args, " "), err, out)
	}
	return out
}

func (x *Node) must(name string, args ...string) string {
	x.net.tb.Helper()
	return x.Run(x.net.tb, name, args...)
}

// Start runs a program in the node in the background. Extra environment has the form KEY=value. It is killed when tb ends,
// and fails tb if it has printed signs of a crash.
func (x *Node) Start(tb TB, env []string, name string, args ...string) *Process {
	tb.Helper()
	p := &Process{log: new(logBuffer), done: make(chan struct{})}
	p.cmd = x.command(name, args...)
	p.cmd.Env = append(p.cmd.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := x.Do(p.cmd.Start); err != nil {
		tb.Fatalf("node %s: start %s: %v", x.Name, name, err)
	}
	p.PID = p.cmd.Process.Pid
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	tb.Cleanup(func() {
		p.Kill()
		for _, sign := range []string{"panic:", "fatal error:", "WARNING: DATA RACE"} {
			if strings.Contains(p.Log(), sign) {
				tb.Errorf("%s in node %s printed %q", name, x.Name, sign)
			}
		}
		if tb.Failed() {
			tb.Logf("%s in node %s printed:\n%s", name, x.Name, tail(p.Log(), 8000))
		}
	})
	return p
}

// Kill ends the process at once and waits for it.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// Stop asks the process to end and waits at most limit. It returns an error if the process did not end, or not with status 0.
func (p *Process) Stop(limit time.Duration) error {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		p.Kill()
		return errors.New("did not end after SIGTERM")
	}
}

// Signal sends the process a signal.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Alive reports whether the process still runs.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Log returns what the process has printed so far.
func (p *Process) Log() string { return p.log.String() }

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}
