package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Options is where a configuration looks beyond its file. The zero value is the process's own surroundings.
type Options struct {
	State     string                      // the folder whose peers.d/*.conf are read too; "": none
	LookupEnv func(string) (string, bool) // default os.LookupEnv
	Hostname  func() (string, error)      // default os.Hostname
}

var errZeroKey = errors.New("the key is all zero")

// Load reads a configuration, its key files and its peers. The error is Errors, or one that wraps the cause why file
// itself cannot be read (fs.ErrNotExist).
func Load(file string, o Options) (*Config, error) { return load(file, o, readFile) }

func load(file string, o Options, readFile func(string) (*content, error)) (*Config, error) {
	l := newLoader(o, readFile)
	text, err := readFile(file)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	l.readMain(file, text)
	if o.State != "" {
		l.readPeerDir(filepath.Join(o.State, peerDir))
	}
	return l.finish()
}

// loader collects drafts and faults while files are read one after the other.
type loader struct {
	Options
	readFile func(string) (*content, error)

	cfg           Config
	interfaceLine int // 0: no [Interface] yet
	interfaceKeys map[string]int
	filterKeys    map[string]int
	exitKeys      map[string]int
	traversalKeys map[string]int
	controlKeys   map[string]int
	peers         []*peerDraft
	netmaps       []*netmapDraft
	upstream      upstreamDraft
	relays        []*relayDraft
	stun          stunDraft
	wgstun        wgstunDraft
	relay         relayFile // of culvert relay; of no other file

	format   *format
	file     string   // being read now
	files    []string // read so far, for the order of diagnostics
	literal  bool     // the current file contains a secret itself
	foreign  *dialect // the last dialect reported for the current file
	faults   Errors
	warnings []Diagnostic
}

// peerDraft is a peer with the lines its checks need.
type peerDraft struct {
	Peer
	keys  map[string]int // slot to line of the first key
	lines []int          // of AllowedIPs, index for index
}

// claim adds a prefix unless the peer has it already.
func (p *peerDraft) claim(prefix netip.Prefix, line int) {
	if !slices.Contains(p.AllowedIPs, prefix) {
		p.AllowedIPs = append(p.AllowedIPs, prefix)
		p.lines = append(p.lines, line)
	}
}

func newLoader(o Options, readFile func(string) (*content, error)) *loader {
	if o.LookupEnv == nil {
		o.LookupEnv = os.LookupEnv
	}
	if o.Hostname == nil {
		o.Hostname = os.Hostname
	}
	return &loader{
		Options:       o,
		cfg:           Config{Traversal: defaultTraversal()},
		readFile:      readFile,
		format:        nodeFormat(),
		interfaceKeys: map[string]int{},
		filterKeys:    map[string]int{},
		exitKeys:      map[string]int{},
		traversalKeys: map[string]int{},
		controlKeys:   map[string]int{},
	}
}

func (l *loader) fault(line int, format string, args ...any) {
	l.faults = append(l.faults, Diagnostic{l.file, line, fmt.Sprintf(format, args...)})
}

func (l *loader) warn(line int, format string, args ...any) {
	l.warnings = append(l.warnings, Diagnostic{l.file, line, fmt.Sprintf(format, args...)})
}

// open starts a file and returns its sections.
func (l *loader) open(file string, text *content) []section {
	l.file, l.literal, l.foreign = file, false, nil
	l.files = append(l.files, file)
	return scan(text.bytes, func(line int, message string) { l.fault(line, "%s", message) })
}

// close ends a file: one that holds a secret itself should be its owner's alone.
func (l *loader) close(text *content) {
	if l.literal {
		l.warnMode(l.file, text.mode)
	}
}

func (l *loader) warnMode(file string, mode fs.FileMode) {
	if mode.IsRegular() && mode.Perm()&0o077 != 0 {
		message := "holds a secret, and its mode lets other users at it: chmod 600 " + file
		l.warnings = append(l.warnings, Diagnostic{file, 0, message})
	}
}

func (l *loader) readMain(file string, text *content) {
	l.cfg.File = file
	for _, s := range l.open(file, text) {
		switch strings.ToLower(s.name) {
		case "interface":
			if l.interfaceLine == 0 {
				l.interfaceLine = s.line
			}
			readSection(l, s, interfaceKeys, &l.cfg.Interface, l.interfaceKeys)
		case "peer":
			l.readPeer(s)
		case "upstream":
			l.readUpstream(s)
		case "netmap":
			l.readNetmap(s)
		case "relay":
			l.readRelay(s)
		case "stun":
			l.readSTUN(s)
		case "wgstun":
			l.readWGSTUN(s)
		case "traversal":
			readSection(l, s, traversalKeys, &l.cfg.Traversal, l.traversalKeys)
		case "filter":
			readSection(l, s, filterKeys, &l.cfg.Filter, l.filterKeys)
		case "exit":
			readSection(l, s, exitKeys, &l.cfg.Exit, l.exitKeys)
		case "control":
			readSection(l, s, controlKeys, &l.cfg.Control, l.controlKeys)
		case "": // scan has reported it
		default:
			l.unknownSection(s)
		}
	}
	l.close(text)
}

func (l *loader) readPeerDir(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.file = dir
		l.fault(0, "read peers: %v", cause(err))
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || filepath.Ext(e.Name()) != peerExt {
			continue
		}
		file := filepath.Join(dir, e.Name())
		text, err := l.readFile(file)
		if err != nil {
			l.file = file
			l.fault(0, "read peer: %v", cause(err))
			continue
		}
		for _, s := range l.open(file, text) {
			switch strings.ToLower(s.name) {
			case "peer":
				l.readPeer(s)
			case "":
			default:
				l.fault(s.line, "only [Peer] may stand in a file of %s", peerDir)
			}
		}
		l.close(text)
	}
}

func (l *loader) readPeer(s section) {
	p := &peerDraft{Peer: Peer{File: l.file, Line: s.line}, keys: map[string]int{}}
	readSection(l, s, peerKeys, p, p.keys)
	l.peers = append(l.peers, p)
}
