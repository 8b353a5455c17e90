package iperf3

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// stockParams are what iperf3 3.12 sends for -u --bidir -P 2 -b 10M -l 1200 -O 1 -t 5 --udp-counters-64bit.
const stockParams = `{"udp":true,"omit":1,"time":5,"num":0,"blockcount":0,"parallel":2,"bidirectional":true,"len":1200,` +
	`"bandwidth":10000000,"pacing_timer":1000,"udp_counters_64bit":1,"client_version":"3.12"}`

func parseParams(text string) (Params, error) {
	var w wireParams
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		return Params{}, err
	}
	return w.params()
}

func TestParametersOfStockClient(t *testing.T) {
	got, err := parseParams(stockParams)
	want := Params{
		Protocol: "udp", Bidir: true, Streams: 2, Time: 5 * time.Second, Length: 1200, Rate: 10e6, Omit: time.Second,
		Interval: time.Second, UDPCounters64: true,
	}
	if err != nil || got != want {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestTruncatedParametersAreNoParameters(t *testing.T) {
	for n := range stockParams {
		if _, err := parseParams(stockParams[:n]); err == nil {
			t.Fatalf("the first %d bytes are taken: %s", n, stockParams[:n])
		}
	}
}

func TestParametersRoundTrip(t *testing.T) {
	for _, p := range []Params{
		{},
		{Reverse: true, Streams: 4, Bytes: 1 << 40, Length: 1 << 20, Window: 1 << 20, NoDelay: true, MSS: 1400, Congestion: "bbr", TOS: 16},
		{Protocol: "udp", Bidir: true, Blocks: 77, Length: 16, Rate: 40e9, Burst: 10, Title: "a title", ExtraData: "x"},
		{Protocol: "udp", Rate: Unlimited, Length: 1200, RepeatingPayload: true, ServerOutput: true, Omit: 2 * time.Second, Time: 24 * time.Hour},
	} {
		p.Target = "host"
		want, err := p.complete()
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(want.wire())
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseParams(string(b))
		want.Target = ""
		if want.Rate == 0 {
			want.Rate = Unlimited
		}
		if err != nil || got != want {
			t.Errorf("%s\ngot  %+v, %v\nwant %+v", b, got, err, want)
		}
	}
}

func TestFractionsOfSecondsAreRoundedUpForTheServer(t *testing.T) {
	w := (&Params{Time: 1200 * time.Millisecond, Omit: time.Second}).wire()
	if w.Time != 2 || w.Omit != 1 {
		t.Errorf("time %v, omit %v", w.Time, w.Omit)
	}
}

func TestHostileParameters(t *testing.T) {
	for text, code := range map[string]int{
		`{"sctp":true}`:                            codeSCTP,
		`{"tcp":true,"parallel":129}`:              codeStreams,
		`{"tcp":true,"parallel":-1}`:               codeStreams,
		`{"tcp":true,"parallel":1e300}`:            codeStreams,
		`{"tcp":true,"time":86401}`:                codeDuration,
		`{"tcp":true,"time":-1}`:                   codeDuration,
		`{"tcp":true,"time":1e308}`:                codeDuration,
		`{"tcp":true,"omit":601}`:                  codeOmit,
		`{"tcp":true,"num":-5}`:                    codeEndConditions,
		`{"tcp":true,"blockcount":1e15}`:           codeEndConditions,
		`{"tcp":true,"num":1e300}`:                 0, // as much as can be counted
		`{"tcp":true,"len":1048577}`:               codeLength,
		`{"tcp":true,"len":-1}`:                    codeLength,
		`{"udp":true,"len":15}`:                    codeUDPLength,
		`{"udp":true,"len":65508}`:                 codeUDPLength,
		`{"tcp":true,"window":536870913}`:          codeWindow,
		`{"tcp":true,"MSS":9217}`:                  codeMSS,
		`{"tcp":true,"TOS":256}`:                   codeTOS,
		`{"tcp":true,"bandwidth":1,"burst":1001}`:  codeBurst,
		`{"tcp":true,"reverse":1,"parallel":"x"}`:  0,
		`{"tcp":true,"title":5,"congestion":null}`: 0,
		`{}`: 0,
	} {
		_, err := parseParams(text)
		var r *refusal
		switch {
		case code == 0 && err != nil, code != 0 && (!errors.As(err, &r) || r.code != code):
			t.Errorf("%s: got %v, want code %d", text, err, code)
		}
	}
}

func TestClientParametersAreChecked(t *testing.T) {
	for name, p := range map[string]Params{
		"no target": {}, "no host": {Target: ":5201"}, "protocol": {Target: "a", Protocol: "sctp"}, "both": {Target: "a", Reverse: true, Bidir: true},
		"interval": {Target: "a", Interval: time.Millisecond}, "length": {Target: "a", Protocol: "udp", Length: 70000},
	} {
		if _, err := p.complete(); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for target, want := range map[string]string{"a": "a:5201", "a:1": "a:1", "::1": "[::1]:5201", "[::1]": "[::1]:5201", "[::1]:7": "[::1]:7"} {
		if p, err := (Params{Target: target}).complete(); err != nil || p.Target != want {
			t.Errorf("%s: got %s, %v", target, p.Target, err)
		}
	}
}

// TestResultsAreNotMuchLargerThanTheirText: a stream takes two bytes there, and 80 in memory.
func TestResultsAreNotMuchLargerThanTheirText(t *testing.T) {
	var w wireResults
	if err := json.Unmarshal([]byte(`{"streams":[{}`+strings.Repeat(",{}", 2*maxStreams-1)+`]}`), &w); err != nil || len(w.Streams) != 2*maxStreams {
		t.Errorf("as many as there can be: %v, %d streams", err, len(w.Streams))
	}
	if err := json.Unmarshal([]byte(`{"streams":[{}`+strings.Repeat(",{}", 2*maxStreams)+`]}`), &w); err == nil || !strings.Contains(err.Error(), "too many streams") {
		t.Errorf("one more: %v", err)
	}
	for _, text := range []string{`{"streams":{}}`, `{"streams":5}`, `{"streams":[5]}`} {
		if err := json.Unmarshal([]byte(text), &w); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}

func TestResultsMustBeOfTheStreams(t *testing.T) {
	streams := []*stream{{id: 1}, {id: 3}}
	good := `{"cpu_util_total":1e+01,"cpu_util_user":1,"cpu_util_system":9,"sender_has_retransmits":-1,"streams":[` +
		`{"id":1,"bytes":1.5e+12,"retransmits":-1,"jitter":0.1,"errors":2,"packets":3,"start_time":0,"end_time":2.5},{"id":3}]}`
	var w wireResults
	if err := json.Unmarshal([]byte(good), &w); err != nil {
		t.Fatal(err)
	}
	if err := w.check(streams); err != nil {
		t.Error(err)
	}
	if got := w.of(1).Bytes.int(); got != 15e11 {
		t.Errorf("bytes %d", got)
	}
	if err := w.check([]*stream{{id: 1}, {id: 4}}); err == nil {
		t.Error("results of other streams are taken")
	}
	if err := w.check(streams[:1]); err == nil {
		t.Error("results of more streams are taken")
	}
}

func FuzzParams(f *testing.F) {
	f.Add([]byte(stockParams))
	f.Add([]byte(`{"tcp":true,"parallel":1e300,"time":"x","len":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseParams(string(b))
		if err != nil {
			return
		}
		if p.connections() > 2*maxStreams || p.Length > maxLength || p.Length < 1 || p.Time+p.Omit > maxTime+maxOmit || p.Rate == 0 {
			t.Fatalf("taken: %+v", p)
		}
		again, err := json.Marshal(p.wire())
		if err != nil {
			t.Fatal(err)
		}
		q, err := parseParams(string(again))
		p.Time, q.Time = p.Time.Truncate(time.Second), q.Time.Truncate(time.Second) // fractions are not sent
		p.Omit, q.Omit = 0, 0
		if d := q.Time - p.Time; err != nil || d < 0 || d > time.Second {
			t.Fatalf("%s: %v, %v", again, d, err)
		}
		q.Time = p.Time
		if p.Bytes < 1<<53 && p.Blocks < 1<<53 && p.Rate < 1<<53 && !reflect.DeepEqual(p, q) {
			t.Fatalf("%+v\n%+v", p, q)
		}
	})
}

func FuzzResults(f *testing.F) {
	f.Add([]byte(`{"streams":[{"id":1,"bytes":5,"packets":7,"errors":-3,"end_time":1e300},{"id":3,"omitted_packets":5}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var w wireResults
		if json.Unmarshal(b, &w) != nil {
			return
		}
		for _, protocol := range []string{"tcp", "udp"} {
			run := newTest(Params{Protocol: protocol, Streams: 1, Bidir: true, Length: 100}, false)
			run.streams = []*stream{{id: 1, sender: true}, {id: 3}}
			run.start, run.ended = run.epoch, run.epoch.Add(time.Second)
			if w.check(run.streams) != nil {
				continue
			}
			if _, err := json.Marshal(run.end(&w, cpuTimes{})); err != nil {
				t.Fatal(err)
			}
		}
	})
}
