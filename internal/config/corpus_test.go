package config

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/good/*.want anew")

// testOptions stands in for a process's surroundings.
func testOptions() Options {
	env := map[string]string{
		"ADDRESS":  "10.0.0.1/24",
		"SECRET":   "hunter2",
		"PASSWORD": "p@ss:wo/rd",
		"PEER_KEY": "qb5xlpl+eB/rzKG9gP2c1Sr/K9gBlA7a0s8mTyxZeWQ=",
	}
	return Options{
		LookupEnv: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		Hostname:  func() (string, error) { return "Host_7.example.org", nil },
	}
}

// Files as providers and people write them load, and mean what their .want says.
func TestFilesInTheWildAreAccepted(t *testing.T) {
	files, _ := filepath.Glob("testdata/good/*.conf")
	if len(files) == 0 {
		t.Fatal("no corpus")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			cfg, err := Load(file, testOptions())
			if err != nil {
				t.Fatal(err)
			}
			got := render(cfg)
			for _, w := range cfg.Warnings {
				if !strings.Contains(w.Message, "chmod 600") { // depends on the checkout's umask; has a test of its own
					got += fmt.Sprintf("# warning %d: %s\n", w.Line, w.Message)
				}
			}
			golden := strings.TrimSuffix(file, ".conf") + ".want"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// A file in testdata/bad has a comment "# expect LINE: message" for each of its errors; there must be no others.
func TestEveryErrorIsReportedWithItsLine(t *testing.T) {
	t.Run("node", func(t *testing.T) {
		checkErrors(t, "testdata/bad/*.conf", func(file string) error {
			_, err := Load(file, testOptions())
			return err
		})
	})
	t.Run("relay", func(t *testing.T) {
		checkErrors(t, "testdata/relay-bad/*.conf", func(file string) error {
			_, err := LoadRelay(file, testOptions())
			return err
		})
	})
}

func checkErrors(t *testing.T, pattern string, load func(file string) error) {
	files, _ := filepath.Glob(pattern)
	if len(files) == 0 {
		t.Fatal("no corpus")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]bool{}
			for line := range strings.Lines(string(text)) {
				if e, ok := strings.CutPrefix(line, "# expect "); ok {
					want[strings.TrimSpace(e)] = true
				}
			}
			err = load(file)
			var faults Errors
			if !errors.As(err, &faults) {
				t.Fatalf("got error %v, want Errors", err)
			}
			previous := 0
			for _, d := range faults {
				if d.Line < previous {
					t.Errorf("line %d is reported after line %d", d.Line, previous)
				}
				previous = d.Line
				got := fmt.Sprintf("%d: %s", d.Line, d.Message)
				if d.File != file || !want[got] {
					t.Errorf("unexpected: %s", d)
				}
				delete(want, got)
			}
			for w := range want {
				t.Errorf("not reported: %s", w)
			}
		})
	}
}

// render writes a configuration in full, defaults included. What is free text stands close to its neighbours, as a # or ;
// behind a blank would begin a comment.
func render(c *Config) string {
	var b strings.Builder
	i := c.Interface
	fmt.Fprintf(&b, "[Interface]\nName = %s\nPrivateKey = %s\nAddress = %s\nListenPort = %d\nMTU = %d\nDNS =%s\n",
		i.Name, i.PrivateKey.Reveal(), join(i.Addresses), i.ListenPort, i.MTU, strings.Trim(join(i.DNS)+","+strings.Join(i.Search, ","), ","))
	for _, p := range c.Peers {
		b.WriteString("\n" + peerText(p, ""))
	}
	if len(c.Filter.Rules)+len(c.Filter.Sets) > 0 {
		b.WriteString("\n[Filter]\n")
	}
	for _, s := range c.Filter.Sets {
		fmt.Fprintf(&b, "Set = %s\n", s.String())
	}
	for _, r := range c.Filter.Rules {
		fmt.Fprintf(&b, "Rule = %s\n", r.String())
	}
	fmt.Fprintf(&b, "\n[Exit]\nDenyTo = %s\nAllowTo = %s\n", join(c.Exit.DenyTo), join(c.Exit.AllowTo))
	switch {
	case c.Exit.DNS.Off:
		b.WriteString("DNS = off\n")
	case len(c.Exit.DNS.Servers) > 0:
		fmt.Fprintf(&b, "DNS = %s\n", join(c.Exit.DNS.Servers))
	}
	for _, d := range c.Exit.DNS.Domains {
		fmt.Fprintf(&b, "DNSRoute = %s to %s\n", d.Domain, join(d.Servers))
	}
	if !c.Exit.SOCKS5 {
		b.WriteString("SOCKS5 = no\n")
	}
	renderServices(&b, c)
	for _, r := range c.Relays {
		fmt.Fprintf(&b, "\n[Relay]\nURL = %s\nWebSocket = %s\n", r.URL, r.WebSocket)
		for _, pin := range r.Pins {
			fmt.Fprintf(&b, "Pin = %s\n", pin)
		}
		if r.Proxy != "" {
			fmt.Fprintf(&b, "Proxy =%s\n", strings.ReplaceAll(r.Proxy, "$", "%24")) // else it would name a variable
		}
	}
	if len(c.STUN) > 0 {
		fmt.Fprintf(&b, "\n[STUN]\nServer = %s\n", strings.Join(c.STUN, ", "))
	}
	if tr := c.Traversal; !reflect.DeepEqual(tr, defaultTraversal()) {
		yesNo := map[bool]string{true: "yes", false: "no"}
		fmt.Fprintf(&b, "\n[Traversal]\nDirect = %s\nHardNAT = %s\nPortMapping = %s\nCandidate = %s\n",
			yesNo[tr.Direct], yesNo[tr.HardNAT], yesNo[tr.PortMapping], join(tr.Candidates))
	}
	if w := c.WGSTUN; w != nil {
		fmt.Fprintf(&b, "\n[WGSTUN]\nPublicKey = %s\nEndpoint = %s\nAddress = %s\n", w.PublicKey, w.Endpoint, join(w.Addresses))
	}
	if c.Control != (Control{}) {
		fmt.Fprintf(&b, "\n[Control]\nSocket =%s\nFlowLog =%s\n", c.Control.Socket, c.Control.FlowLog)
	}
	if c.Control.HTTP.IsValid() {
		fmt.Fprintf(&b, "HTTP = %s\n", c.Control.HTTP)
	}
	return b.String()
}

// renderServices writes what programs of this host and peers connect to.
func renderServices(b *strings.Builder, c *Config) {
	yesNo := map[bool]string{true: "yes", false: "no"}
	common := func(listen []Listen, exits []string, from []netip.Prefix) {
		var mode fs.FileMode // one for all sockets of a section
		for _, a := range listen {
			switch text := a.String(); {
			case a.Optional && a.Addr.Addr().Is6(): // goes with the IPv4 one
			case a.Optional:
				fmt.Fprintf(b, "Listen = localhost%s\n", strings.TrimPrefix(text, "127.0.0.1"))
			default:
				fmt.Fprintf(b, "Listen = %s\n", text)
			}
			if a.Mode != 0 && a.Mode != mode {
				mode = a.Mode
				fmt.Fprintf(b, "Mode = %04o\n", mode)
			}
		}
		if len(exits) > 0 {
			fmt.Fprintf(b, "Exit = %s\n", strings.Join(exits, ", "))
		}
		if len(from) > 0 {
			fmt.Fprintf(b, "AllowFrom = %s\n", join(from))
		}
	}
	for _, p := range c.Proxies {
		if p.SOCKS {
			fmt.Fprintf(b, "\n[SOCKS5]\nHTTP = %s\nUDP = %s\n", yesNo[p.HTTP], yesNo[p.UDP])
		} else {
			b.WriteString("\n[HTTP]\n")
		}
		common(p.Listen, p.Exits, p.AllowFrom)
		for _, u := range p.Users {
			fmt.Fprintf(b, "User = %s:%s\n", u.Name, u.Password)
		}
		for _, r := range p.Routes {
			fmt.Fprintf(b, "Route = %s\n", r)
		}
		if p.MaxConnections != 0 {
			fmt.Fprintf(b, "MaxConnections = %d\n", p.MaxConnections)
		}
	}
	for _, f := range c.Forwards {
		b.WriteString("\n[Forward]\n")
		common(f.Listen, f.Exits, f.AllowFrom)
		fmt.Fprintf(b, "To = %s\n", net.JoinHostPort(f.Host, f.Ports.String()))
	}
	for _, p := range c.Publishes {
		to := "unix:" + p.To.Path
		if p.To.Path == "" {
			to = net.JoinHostPort(p.To.Host, p.To.Ports.String())
		}
		fmt.Fprintf(b, "\n[Publish]\nListen = %s/%s\nTo = %s\n", p.Ports, strings.Join(p.Networks, ","), to)
		if p.ProxyProtocol {
			b.WriteString("ProxyProtocol = v2\n")
		}
	}
}
