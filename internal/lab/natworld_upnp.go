//go:build linux

package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// StartUPnP starts miniupnpd on the site's router: UPnP, NAT-PMP and PCP. The site is one with UPnP.
func (s *Site) StartUPnP(tb TB) *Process {
	tb.Helper()
	Need(tb, "miniupnpd")
	if !s.rules.UPnP {
		tb.Fatalf("site %s: its outer address is none that miniupnpd forwards", s.Name)
	}
	s.Router.Nft(`table inet upnp
	delete table inet upnp
	table inet upnp {
		chain upnp_pre { }
		chain upnp_post { }
		chain pre { type nat hook prerouting priority dstnat - 5; jump upnp_pre; }
		chain post { type nat hook postrouting priority srcnat - 5; jump upnp_post; }
	}`)
	conf := filepath.Join(tb.TempDir(), "miniupnpd.conf")
	text := fmt.Sprintf(`ext_ifname=wan
listening_ip=lan
http_port=5000
enable_upnp=yes
enable_natpmp=yes
secure_mode=yes
uuid=00000000-0000-4000-8000-%012d
upnp_table_name=fw
upnp_nat_table_name=upnp
upnp_forward_chain=upnp
upnp_nat_chain=upnp_pre
upnp_nat_postrouting_chain=upnp_post
allow 1024-65535 %s 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
`, s.index, s.rules.lan)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		tb.Fatalf("%v", err)
	}
	p := s.Router.Start(tb, nil, "miniupnpd", "-d", "-f", conf, "-P", conf+".pid")
	WaitFor(tb, 10*time.Second, "miniupnpd", func() bool { return s.Router.Bound("tcp", 5000) && s.Router.Bound("udp", 5351) })
	return p
}
