package dns

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// ResolvConf is where the host's resolvers are listed, resolv.conf(5).
const ResolvConf = "/etc/resolv.conf"

const (
	maxNameservers = 3 // MAXNS of resolv.conf(5)
	maxFileLen     = 64 << 10
	recheckTime    = 2 * time.Second
	dnsPort        = 53
)

// System follows the nameservers of a resolv.conf file. The file's options (timeout, attempts, rotate) are for programs
// with other patience than a forwarder's and are ignored.
type System struct {
	path string

	mu      sync.Mutex // guards the following
	checked time.Time
	seen    os.FileInfo // nil without a file
	servers []netip.AddrPort
}

// NewSystem returns a follower of the file at path, usually ResolvConf. The file need not exist.
func NewSystem(path string) *System { return &System{path: path} }

// Upstreams returns the nameservers, of which there is always at least one: without any in the file, or without a file,
// it is 127.0.0.1, as resolv.conf(5) says. The file is looked at again at most every two seconds, and read when it has
// changed. The caller must not change the slice.
func (s *System) Upstreams() []netip.AddrPort { return s.at(time.Now()) }

func (s *System) at(now time.Time) []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.servers != nil && now.Sub(s.checked) < recheckTime {
		return s.servers
	}
	s.checked = now
	info, err := os.Stat(s.path)
	if err != nil {
		info = nil
	}
	if s.servers != nil && sameVersion(info, s.seen) {
		return s.servers
	}
	servers, err := readResolvConf(s.path)
	if err == nil || s.servers == nil || info == nil { // a file that cannot be read now changes nothing
		s.seen, s.servers = info, servers
	}
	return s.servers
}

func sameVersion(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// readResolvConf returns the default along with an error.
func readResolvConf(path string) ([]netip.AddrPort, error) {
	f, err := os.Open(path)
	if err != nil {
		return parseResolvConf(strings.NewReader("")), err
	}
	defer f.Close()
	return parseResolvConf(io.LimitReader(f, maxFileLen)), nil
}

func parseResolvConf(r io.Reader) (servers []netip.AddrPort) {
	lines := bufio.NewScanner(r)
	for lines.Scan() && len(servers) < maxNameservers {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(fields[1])
		if err != nil {
			continue
		}
		if to := netip.AddrPortFrom(a.Unmap(), dnsPort); !slices.Contains(servers, to) {
			servers = append(servers, to)
		}
	}
	if len(servers) == 0 {
		servers = append(servers, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort))
	}
	return servers
}
