//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"culvert.dev/culvert/interop/stock"
)

// server is a relay under measurement, in a process of its own on its own core.
type server struct {
	name  string
	url   string
	roots *x509.CertPool
	pid   int
	stop  func()
}

// The names by which samples and tables know the two.
const (
	nameCulvert = "culvert"
	nameStock   = "derper"
)

// startServer starts one of the two. dir is for files of derper's.
func startServer(name string, o options, dir string) (*server, error) {
	start := startPinned(serverCore, o.Procs)
	if name == nameCulvert {
		return startCulvert(start)
	}
	d, err := stock.Start(stock.DerperConfig{Binary: o.derper, Dir: dir, Start: start})
	if err != nil {
		return nil, err
	}
	return &server{name: name, url: d.URL, roots: d.Roots, pid: d.PID, stop: d.Stop}, nil
}

func startCulvert(start func(*exec.Cmd) error) (_ *server, err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(exe, "serve")
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // its end is the server's end, also if this process is killed
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("start culvert's relay: %w", err)
	}
	s := &server{name: nameCulvert, pid: cmd.Process.Pid, stop: func() {
		stdin.Close()
		cmd.Process.Kill()
		cmd.Wait()
	}}
	defer func() {
		if err != nil {
			s.stop()
			err = fmt.Errorf("start culvert's relay: %w", err)
		}
	}()
	said := bufio.NewReader(stdout)
	addr, err := said.ReadString('\n')
	if err != nil {
		return nil, err
	}
	cert, err := io.ReadAll(said)
	if err != nil {
		return nil, err
	}
	s.url = "https://" + strings.TrimSpace(addr)
	s.roots = x509.NewCertPool()
	if !s.roots.AppendCertsFromPEM(cert) {
		return nil, fmt.Errorf("no certificate in %q", cert)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return s, stock.Await(ctx, s.url)
}

// profile takes a CPU profile of the server into dir, for as long as given.
func (s *server) profile(dir, label string, d time.Duration) error {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots}}}
	defer client.CloseIdleConnections()
	resp, err := client.Get(fmt.Sprintf("%s/debug/pprof/profile?seconds=%d", s.url, max(1, int(d.Seconds()))))
	if err != nil {
		return fmt.Errorf("profile %s: %w", s.name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("profile %s: %s, %v", s.name, resp.Status, err)
	}
	return os.WriteFile(filepath.Join(dir, s.name+"-"+label+".pprof"), body, 0o644)
}
