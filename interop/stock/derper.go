package stock

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

// Build compiles the derper command into dir and returns its path. The working directory must lie in this module, which
// pins derper's version.
func Build(dir string) (string, error) {
	binary := filepath.Join(dir, "derper")
	out, err := exec.Command("go", "build", "-o", binary, "tailscale.com/cmd/derper").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build derper: %w: %s", err, bytes.TrimSpace(out))
	}
	return binary, nil
}

// DerperConfig says how the command runs.
type DerperConfig struct {
	Binary string                // as Build made it
	Dir    string                // for its key, certificate and nothing else
	Plain  bool                  // HTTP without TLS
	Rate   string                // a JSON file for -rate-config, "" for no limit
	Start  func(*exec.Cmd) error // nil: (*exec.Cmd).Start
}

// Derper is a derper process on a loopback port.
type Derper struct {
	URL   string         // https://127.0.0.1:port or http://
	Roots *x509.CertPool // trusts its self-signed certificate; nil with Plain
	Leaf  *x509.Certificate
	PID   int

	cmd *exec.Cmd
	log *tail
}

// Start runs the command and returns when it answers.
func Start(cfg DerperConfig) (*Derper, error) {
	addr, err := freeAddress()
	if err != nil {
		return nil, err
	}
	d := &Derper{URL: "https://" + addr, log: &tail{}}
	args := []string{"-a", addr, "-http-port", "-1", "-stun=false", "-hostname", "127.0.0.1",
		"-c", filepath.Join(cfg.Dir, "derper.key"), "-certdir", cfg.Dir, "-certmode", "manual"}
	if cfg.Plain {
		d.URL = "http://" + addr
		args[len(args)-1] = "letsencrypt" // on a port other than 443 this means plain HTTP
	}
	if cfg.Rate != "" {
		args = append(args, "-rate-config", cfg.Rate)
	}
	d.cmd = exec.Command(cfg.Binary, args...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	start := cfg.Start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(d.cmd); err != nil {
		return nil, fmt.Errorf("start derper: %w", err)
	}
	d.PID = d.cmd.Process.Pid
	if err := d.ready(cfg); err != nil {
		d.Stop()
		return nil, fmt.Errorf("start derper: %w; it wrote: %s", err, d.log)
	}
	return d, nil
}

// ready waits until the process answers a probe, and reads the certificate it made for itself.
func (d *Derper) ready(cfg DerperConfig) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := Await(ctx, d.URL); err != nil || cfg.Plain {
		return err
	}
	text, err := os.ReadFile(filepath.Join(cfg.Dir, "127.0.0.1.crt"))
	if err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return errors.New("its certificate is not PEM")
	}
	if d.Leaf, err = x509.ParseCertificate(block.Bytes); err != nil {
		return err
	}
	d.Roots = x509.NewCertPool()
	d.Roots.AddCert(d.Leaf)
	return nil
}

// Stop kills the process and waits for its end.
func (d *Derper) Stop() {
	d.cmd.Process.Kill()
	d.cmd.Wait()
}

// Await asks the relay's probe until it answers 200. The certificate is not checked.
func Await(ctx context.Context, url string) error {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/derp/probe", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(resp.Status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("await %s: %w", url, err)
		case <-tick.C:
		}
	}
}

// freeAddress finds a loopback port that nobody has at the moment.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// tail keeps the last few kilobytes written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if extra := len(t.b) - tailSize; extra > 0 {
		t.b = append(t.b[:0], t.b[extra:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}
