package iperf3

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"time"
)

// number is one of a peer's JSON. Peers write integers as 1e+09 too, and some values as true; what is none of these is 0, as for
// iperf3.
type number float64

// UnmarshalJSON implements json.Unmarshaler.
func (n *number) UnmarshalJSON(b []byte) error {
	f, err := strconv.ParseFloat(string(b), 64)
	switch {
	case err == nil:
		*n = number(f)
	case string(b) == "true":
		*n = 1
	default:
		*n = 0
	}
	return nil
}

// MarshalJSON implements json.Marshaler: integers stay integers.
func (n number) MarshalJSON() ([]byte, error) {
	f := float64(n)
	switch {
	case math.IsNaN(f) || math.IsInf(f, 0):
		return []byte("0"), nil
	case f == math.Trunc(f) && math.Abs(f) < 1<<53:
		return strconv.AppendInt(nil, int64(f), 10), nil
	}
	return json.Marshal(f)
}

// int is the nearest integer that an int64 can hold with room for the sum of all streams.
func (n number) int() int64 {
	const most = maxBytes
	return int64(max(-most, min(most, float64(n))))
}

// flag is a parameter that is on by being there at all.
type flag bool

// UnmarshalJSON implements json.Unmarshaler.
func (f *flag) UnmarshalJSON([]byte) error { *f = true; return nil }

// text is a string, or "" where a peer wrote something else.
type text string

// UnmarshalJSON implements json.Unmarshaler.
func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) != nil {
		s = ""
	}
	*t = text(s)
	return nil
}

// wireParams are the parameters as the client sends them. Window, MSS and so on are left out when they are 0.
type wireParams struct {
	TCP              flag   `json:"tcp,omitempty"`
	UDP              flag   `json:"udp,omitempty"`
	SCTP             flag   `json:"sctp,omitempty"`
	Omit             number `json:"omit"`
	Time             number `json:"time"`
	Bytes            number `json:"num"`
	Blocks           number `json:"blockcount"`
	MSS              number `json:"MSS,omitempty"`
	NoDelay          flag   `json:"nodelay,omitempty"`
	Parallel         number `json:"parallel"`
	Reverse          flag   `json:"reverse,omitempty"`
	Bidirectional    flag   `json:"bidirectional,omitempty"`
	Window           number `json:"window,omitempty"`
	Length           number `json:"len,omitempty"`
	Bandwidth        number `json:"bandwidth,omitempty"`
	PacingTimer      number `json:"pacing_timer,omitempty"`
	Burst            number `json:"burst,omitempty"`
	TOS              number `json:"TOS,omitempty"`
	Title            text   `json:"title,omitempty"`
	ExtraData        text   `json:"extra_data,omitempty"`
	Congestion       text   `json:"congestion,omitempty"`
	GetServerOutput  number `json:"get_server_output,omitempty"`
	UDPCounters64    number `json:"udp_counters_64bit,omitempty"`
	RepeatingPayload number `json:"repeating_payload,omitempty"`
	ClientVersion    text   `json:"client_version"`
}

// wire returns complete parameters as they are sent.
func (p *Params) wire() *wireParams {
	return &wireParams{
		TCP: flag(!p.udp()), UDP: flag(p.udp()),
		Omit: wholeSeconds(p.Omit), Time: wholeSeconds(p.Time), Bytes: number(p.Bytes), Blocks: number(p.Blocks),
		MSS: number(p.MSS), NoDelay: flag(p.NoDelay), Parallel: number(p.Streams), Reverse: flag(p.Reverse), Bidirectional: flag(p.Bidir),
		Window: number(p.Window), Length: number(p.Length), Bandwidth: number(max(p.Rate, 0)),
		PacingTimer: number(defaultPacing.Microseconds()), Burst: number(p.Burst), TOS: number(p.TOS),
		Title: text(p.Title), ExtraData: text(p.ExtraData), Congestion: text(p.Congestion),
		GetServerOutput: oneIf(p.ServerOutput), UDPCounters64: oneIf(p.UDPCounters64), RepeatingPayload: oneIf(p.RepeatingPayload),
		ClientVersion: protocolVersion,
	}
}

// protocolVersion is that of iperf3 whose protocol this is.
const protocolVersion = "3.12"

// wholeSeconds rounds up: servers end a test that takes longer than it was to, after a while.
func wholeSeconds(d time.Duration) number { return number(math.Ceil(d.Seconds())) }

func oneIf(b bool) number {
	if b {
		return 1
	}
	return 0
}

// params returns the parameters that a client has sent, complete and checked. Their Interval is not part of them.
func (w *wireParams) params() (Params, error) {
	p := Params{
		Protocol: "tcp", Reverse: bool(w.Reverse), Bidir: bool(w.Bidirectional), Streams: clampInt(w.Parallel),
		Time: seconds(w.Time), Bytes: w.Bytes.int(), Blocks: w.Blocks.int(), Length: clampInt(w.Length),
		Rate: w.Bandwidth.int(), Burst: clampInt(w.Burst), Omit: seconds(w.Omit).Truncate(time.Second), Interval: defaultInterval,
		Window: clampInt(w.Window), Congestion: string(w.Congestion), MSS: clampInt(w.MSS), NoDelay: bool(w.NoDelay), TOS: clampInt(w.TOS),
		UDPCounters64: w.UDPCounters64 != 0, RepeatingPayload: w.RepeatingPayload != 0, ServerOutput: w.GetServerOutput != 0,
		Title: string(w.Title), ExtraData: string(w.ExtraData),
	}
	switch {
	case bool(w.SCTP):
		return p, &refusal{codeSCTP, "the client asks for SCTP"}
	case bool(w.UDP):
		p.Protocol = "udp"
	}
	if p.Rate <= 0 {
		p.Rate = Unlimited
	}
	if p.Streams == 0 {
		p.Streams = 1
	}
	if p.Length == 0 {
		p.Length = defaultTCPLength
		if p.udp() {
			p.Length = hostUDPLength
		}
	}
	return p, p.check()
}

// clampInt keeps what is far too large far too large.
func clampInt(n number) int { return int(max(-1<<30, min(1<<30, n.int()))) }

// seconds is a duration, at most one year.
func seconds(n number) time.Duration {
	return time.Duration(max(-1, min(float64(n), 365*86400)) * float64(time.Second))
}

// wireResults are what one end has counted.
type wireResults struct {
	CPUTotal         number          `json:"cpu_util_total"`
	CPUUser          number          `json:"cpu_util_user"`
	CPUSystem        number          `json:"cpu_util_system"`
	HasRetransmits   number          `json:"sender_has_retransmits"` // -1 of one that only receives
	Congestion       text            `json:"congestion_used,omitempty"`
	ServerOutputText text            `json:"server_output_text,omitempty"`
	ServerOutputJSON json.RawMessage `json:"server_output_json,omitempty"`
	Streams          wireStreams     `json:"streams"`
}

// wireStreams are of at most twice maxStreams: more would take much more memory than their text.
type wireStreams []wireStreamResult

// UnmarshalJSON implements json.Unmarshaler.
func (w *wireStreams) UnmarshalJSON(b []byte) error {
	*w = nil
	d := json.NewDecoder(bytes.NewReader(b))
	if start, err := d.Token(); err != nil || start != json.Delim('[') {
		return errors.New("the streams are no list")
	}
	for d.More() {
		if len(*w) == 2*maxStreams {
			return errors.New("too many streams in the results")
		}
		var r wireStreamResult
		if err := d.Decode(&r); err != nil {
			return err
		}
		*w = append(*w, r)
	}
	return nil
}

// wireStreamResult is of one stream. Packets include those that are omitted, as iperf3's do; times are seconds.
type wireStreamResult struct {
	ID             number `json:"id"`
	Bytes          number `json:"bytes"`
	Retransmits    number `json:"retransmits"` // -1 if not known
	Jitter         number `json:"jitter"`
	Errors         number `json:"errors"`
	OmittedErrors  number `json:"omitted_errors,omitempty"` // of Errors; sent by later versions
	Packets        number `json:"packets"`
	OmittedPackets number `json:"omitted_packets,omitempty"`
	StartTime      number `json:"start_time"`
	EndTime        number `json:"end_time"`
}

// check tells whether the results are those of the streams of a test.
func (w *wireResults) check(streams []*stream) error {
	if len(w.Streams) != len(streams) {
		return errors.New("the results have " + strconv.Itoa(len(w.Streams)) + " streams, the test " + strconv.Itoa(len(streams)))
	}
	for i := range w.Streams {
		if w.of(streams[i].id) == nil {
			return errors.New("the results lack stream " + strconv.Itoa(streams[i].id))
		}
	}
	return nil
}

// of returns what is said about a stream.
func (w *wireResults) of(id int) *wireStreamResult {
	for i := range w.Streams {
		if w.Streams[i].ID == number(id) {
			return &w.Streams[i]
		}
	}
	return nil
}
