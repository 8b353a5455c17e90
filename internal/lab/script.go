//go:build linux

package lab

import (
	"errors"
	"fmt"
	"log"
	"os"
	"runtime"
	"sync"
)

// Script runs f with a laboratory outside of go test, for commands such as benchmarks. It returns what
// Errorf, Fatalf and Skipf said. Logf writes to the standard logger.
func Script(name string, f func(tb TB)) error {
	s := &script{name: name}
	done := make(chan struct{})
	go func() { // Fatalf ends the goroutine, as in a test
		defer close(done)
		defer s.cleanup()
		f(s)
	}()
	<-done
	return s.err
}

// script is a TB for commands.
type script struct {
	name string

	mu sync.Mutex
	// guards the following
	cleanups []func()
	err      error
}

func (s *script) Helper()      {}
func (s *script) Name() string { return s.name }

func (s *script) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

func (s *script) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err != nil
}

func (s *script) Logf(format string, args ...any) { log.Printf(format, args...) }

func (s *script) Errorf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = errors.Join(s.err, fmt.Errorf(format, args...))
}

func (s *script) Fatalf(format string, args ...any) {
	s.Errorf(format, args...)
	runtime.Goexit()
}

func (s *script) Skipf(format string, args ...any) { s.Fatalf(format, args...) }

func (s *script) TempDir() string {
	dir, err := os.MkdirTemp("", s.name)
	if err != nil {
		s.Fatalf("%v", err)
	}
	s.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// cleanup runs what was registered, last first; a function may register more.
func (s *script) cleanup() {
	for {
		s.mu.Lock()
		n := len(s.cleanups)
		if n == 0 {
			s.mu.Unlock()
			return
		}
		f := s.cleanups[n-1]
		s.cleanups = s.cleanups[:n-1]
		s.mu.Unlock()
		f()
	}
}
