//go:build linux

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"time"
)

// options are the command line.
type options struct {
	Rounds int           `json:"rounds"`
	Length time.Duration `json:"length_ns"` // of one measurement
	Warmup time.Duration `json:"warmup_ns"` // of one before the rounds
	Settle time.Duration `json:"settle_ns"` // before memory is read
	Family int           `json:"ip_version"`
	TCP    string        `json:"tcp_congestion_control"` // of all hosts; empty: the machine's
	Quick  bool          `json:"quick,omitempty"`
	Slots  []slot        `json:"exits,omitempty"`

	only    *regexp.Regexp
	list    bool
	out     string
	profile string // the file; empty for a comparison
}

// parseOptions reads the command line. Asked for help it writes that and returns flag.ErrHelp.
func parseOptions(args []string, help io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("compare", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // the caller says what is wrong
	fs.IntVar(&o.Rounds, "rounds", 5, "measure each load `N` times")
	fs.DurationVar(&o.Length, "length", 5*time.Second, "measure for this `time` each")
	fs.DurationVar(&o.Warmup, "warmup", time.Second, "measure for this `time` each before the first round; 0 for not at all")
	fs.DurationVar(&o.Settle, "settle", 10*time.Second, "read memory after this `time` of rest")
	fs.IntVar(&o.Family, "ip", 4, "use IP version 4 or 6 inside the tunnel")
	fs.StringVar(&o.TCP, "tcp", "", "give all hosts the kernel's TCP congestion control `NAME`, if the machine allows it to namespaces; default: the machine's own")
	only := fs.String("only", "", "measure only the loads whose names match `REGEXP`")
	fs.BoolVar(&o.list, "list", false, "list the loads and measure nothing")
	fs.BoolVar(&o.Quick, "quick", false, "see whether it works: each load once, as short as it can be, whatever -rounds, -length, -warmup and -settle say")
	fs.StringVar(&o.out, "out", "", "write report.txt, report.json and report.html into the `folder`; default: a new one among the temporary files")
	fs.StringVar(&o.profile, "profile", "", "compare nothing: write a CPU profile of the culvert exit under the loads, each once, to the `FILE`, for go build -pgo")
	fs.Var(slots{list: &o.Slots}, "exit", "also measure another exit, `NAME=COMMAND`; may be repeated")
	fs.Var(slots{list: &o.Slots, root: true}, "exit-root", "the same for a command that needs root: `NAME=COMMAND`")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fs.SetOutput(help)
			fmt.Fprint(help, "usage: go run ./bench/compare [flags]\n\nCompare a culvert exit with stock wireguard-go on a kernel TUN, run as root.\n\n")
			fs.PrintDefaults()
			fmt.Fprint(help, slotHelp)
		}
		return o, err
	}
	if o.Quick {
		o.Rounds, o.Length, o.Warmup, o.Settle = 1, 300*time.Millisecond, 0, 100*time.Millisecond
	}
	if o.profile != "" && *only == "" {
		*only = profileLoads
	}
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, fmt.Errorf("-only: %w", err)
	}
	if o.profile != "" {
		fs.Visit(func(f *flag.Flag) {
			if slices.Contains(comparisonFlags, f.Name) {
				err = fmt.Errorf("-profile compares nothing: -%s has no place beside it", f.Name)
			}
		})
		if err != nil {
			return o, err
		}
	}
	switch {
	case fs.NArg() > 0:
		return o, fmt.Errorf("unknown argument %q", fs.Arg(0))
	case o.Rounds < 1 || o.Length <= 0 || o.Warmup < 0 || o.Settle < 0:
		return o, fmt.Errorf("-rounds and -length must be more than 0, -warmup and -settle not less")
	case o.Family != 4 && o.Family != 6:
		return o, fmt.Errorf("-ip must be 4 or 6")
	}
	return o, nil
}

// comparisonFlags say how exits are compared.
var comparisonFlags = []string{"rounds", "warmup", "out", "exit", "exit-root"}

// selected are the loads that are to be measured.
func (o options) selected() (list []load, err error) {
	list = slices.DeleteFunc(loads(), func(l load) bool { return !o.only.MatchString(l.name) })
	if len(list) == 0 {
		return nil, fmt.Errorf("no load matches %q; -list shows them", o.only)
	}
	return list, nil
}

// names are the contenders, in the order of the report's columns.
func (o options) names() []string {
	names := []string{culvert, reference}
	for _, s := range o.Slots {
		names = append(names, s.Name)
	}
	return names
}

func (o options) slot(name string) (slot, bool) {
	i := slices.IndexFunc(o.Slots, func(s slot) bool { return s.Name == name })
	if i < 0 {
		return slot{}, false
	}
	return o.Slots[i], true
}

// family is the index of the IP version in the laboratory's pairs of addresses.
func (o options) family() int { return slices.Index([]int{4, 6}, o.Family) }

// notes say how the figures came about.
func (o options) notes() []string {
	tcp := o.TCP
	if tcp == "" {
		tcp = "that of the machine"
	}
	return []string{
		fmt.Sprintf("Rounds: %d of %v, IPv%d in the tunnel, MTU %d; TCP congestion control of all hosts: %s.", o.Rounds, o.Length, o.Family, mtu, tcp),
		"Each exit has network namespaces of its own: a client with stock wireguard-go on a kernel TUN, the exit, a router, a server. All share this machine's cores. While one exit is measured the others are idle.",
		"The reference is stock wireguard-go on a kernel TUN with ip_forward and nft masquerade, as root. Culvert runs without root, capabilities or TUN.",
		"What arrived is counted at the receiver, and must have come by the exit's own link. CPU time and memory are of the processes in the exit's namespace, one of which must hold the WireGuard port; what the kernel forwards outside of them is no process's.",
		fmt.Sprintf("The line with a delay of %v each way stands on the WireGuard path, between client and exit; from the exit to the server there is no delay. It is the same for all exits.", distance),
		"Peak memory is the most since the process started, which is before the load; memory of flows is what the exit needs more than before they were opened.",
		"Two nodes end to end: curl on a further client host, by the SOCKS5 listener of a culvert there, or into the kernel TUN of a stock wireguard-go there; through the exit to an HTTP server.",
		"Allocations per packet are not measured here: go test -bench=. ./bench/hotpath.",
	}
}

// environment variable by which the stages of the laboratory, which are executions of this program, know the folder.
const outEnv = "COMPARE_OUT"

// folder makes sure that there is one for the report.
func (o options) folder() (string, error) {
	if dir := os.Getenv(outEnv); dir != "" {
		return dir, nil
	}
	dir := o.out
	if dir != "" {
		return dir, os.MkdirAll(dir, 0o755)
	}
	base := os.TempDir()
	return os.MkdirTemp(base, "culvert-compare-"+time.Now().Format("20060102-1504")+"-")
}
