package dns

import (
	"net"
	"os/exec"
	"strings"
	"testing"
)

// dig, a stock client, reads what this node answers itself.
func TestDigReadsTheZone(t *testing.T) {
	dig, err := exec.LookPath("dig")
	if err != nil {
		t.Skip("dig is not installed")
	}
	zone := NewZone("mesh", prefixes("100.64.0.0/10", "fd7a:1::/48"), []Host{
		{"db", addrs("100.64.0.5", "fd7a:1::5")}, {"many", manyAddresses(60)},
	})
	domains := []Domain{{"corp.example", routeVia("corp.example", newUpstream(t, fixed("10.0.0.2")))}}
	_, addr := newServer(t, Config{Zone: func() *Zone { return zone }, Domains: func() []Domain { return domains }}, newUpstream(t, fixed("192.0.2.1")))
	_, port, _ := net.SplitHostPort(addr)
	for _, c := range []struct {
		args string
		want []string // of the output; with "=" in front all of it
	}{
		{"+short db.mesh", []string{"=100.64.0.5"}},
		{"+short DB.MESH AAAA", []string{"=fd7a:1::5"}},
		{"+short +search +domain=mesh db", []string{"=100.64.0.5"}},
		{"+short db", []string{"=100.64.0.5"}},
		{"+short +tcp db.mesh", []string{"=100.64.0.5"}},
		{"+short -x 100.64.0.5", []string{"=db.mesh."}},
		{"+short -x fd7a:1::5", []string{"=db.mesh."}},
		{"-x 100.64.0.9", []string{"status: NXDOMAIN", "flags: qr aa rd ra", "64.100.in-addr.arpa.\t30\tIN\tSOA\t64.100.in-addr.arpa. nobody.invalid. 1 3600 1200 604800 30"}},
		{"db.mesh ANY", []string{"status: NOERROR", "ANSWER: 1", "db.mesh.\t\t30\tIN\tA\t100.64.0.5"}},
		{"db.mesh HTTPS", []string{"status: NOERROR", "ANSWER: 0, AUTHORITY: 1", "mesh.\t\t\t30\tIN\tSOA\tmesh."}},
		{"mesh NS", []string{"mesh.\t\t\t30\tIN\tNS\tmesh."}},
		{"nosuch.mesh", []string{"status: NXDOMAIN", "mesh.\t\t\t30\tIN\tSOA"}},
		{"nosuch", []string{"status: NXDOMAIN", ".\t\t\t30\tIN\tSOA\t. nobody.invalid."}},
		{"+bufsize=512 +ignore many.mesh", []string{"flags: qr aa tc rd ra", "ANSWER: 0"}},
		{"+bufsize=512 many.mesh", []string{"Truncated, retrying in TCP mode", "ANSWER: 60", "100.64.1.59"}},
		{"+bufsize=1232 many.mesh", []string{"flags: qr aa rd ra", "ANSWER: 60"}},
		{"+edns=1 +noednsnegotiation db.mesh", []string{"status: BADVERS"}},
		{"+short www.example", []string{"=192.0.2.1"}},
		{"+short db.corp.example", []string{"=10.0.0.2"}},
		{"+dnssec db.mesh", []string{"flags: do;", "ANSWER: 1"}},
		{"mesh AXFR", []string{"Transfer failed"}},
		{"+short localhost", []string{"=127.0.0.1"}},
	} {
		t.Run(c.args, func(t *testing.T) {
			args := append([]string{"-r", "@127.0.0.1", "-p", port, "+tries=1", "+time=5"}, strings.Fields(c.args)...)
			out, err := exec.Command(dig, args...).CombinedOutput()
			if err != nil {
				t.Fatalf("dig: %v\n%s", err, out)
			}
			for _, w := range c.want {
				if whole, exact := strings.CutPrefix(w, "="); exact && strings.TrimSpace(string(out)) != whole || !exact && !strings.Contains(string(out), w) {
					t.Errorf("want %q in\n%s", w, out)
				}
			}
		})
	}
}
