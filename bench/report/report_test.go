package report

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"
)

// example has what documents have: two groups, three contenders, targets of all kinds, gaps, and names that want escaping.
func example() *Document {
	d := &Document{
		Title:       `Fast & <b>"plain"</b>`,
		Environment: Env{Host: "h", Kernel: "6.18", CPU: "EPYC", Cores: 2, Go: "go1.26", Date: time.Unix(0, 0).UTC(), Commit: "abc", Command: []string{"compare", "<script>"}},
		Notes:       []string{"Measured in turn </p>."},
		Contenders:  []string{"ours", "theirs", "<third>"}, Subject: "ours",
		Pairs: []Pair{{"ours", "theirs"}, {"<third>", "theirs"}},
	}
	up := d.Case("TCP & more", "up", "Mbit/s")
	up.Target = RatioAtLeast(1.05)
	for round, v := range [][3]float64{{900, 1000, 10}, {100, 50, 20}, {800, 700, 30}} {
		up.Add("ours", round+1, v[0])
		up.Add("theirs", round+1, v[1])
		up.Add("<third>", round+1, v[2])
	}
	cpu := d.Case("TCP & more", "CPU", "s/GB")
	cpu.LowerIsBetter, cpu.Target = true, RatioAtMost(0.9)
	cpu.Add("ours", 1, 2)
	cpu.Add("theirs", 1, 2)
	memory := d.Case("memory", "idle", "MB")
	memory.Target, memory.Note = Below(30), "of the exit's process"
	memory.Add("ours", 1, 27)
	memory.Add("ours", 2, 28)
	d.Case("memory", "of <i>nobody</i>", "MB").Target = Below(30)
	d.Case("memory", "allocations", "").Target = AtMost(0)
	d.Case("memory", "allocations", "").Add("ours", 1, 0)
	return d
}

func TestRatioIsThatOfTheMedians(t *testing.T) {
	d := example()
	r, ok := d.Cases[0].Ratio(d.Pairs[0])
	if want := 800.0 / 700; !ok || r.Ratio != want {
		t.Errorf("got %v, want %v", r.Ratio, want)
	}
	if r.Least != 0.9 || r.Most != 2 {
		t.Errorf("rounds have %v to %v, want 0.9 to 2", r.Least, r.Most)
	}
}

func TestRatioNeedsBothSides(t *testing.T) {
	for name, c := range map[string]*Case{
		"no sample of the reference": {Samples: []Sample{{"a", 1, 2}}},
		"no sample of the subject":   {Samples: []Sample{{"b", 1, 2}}},
		"a reference of zero":        {Samples: []Sample{{"a", 1, 2}, {"b", 1, 0}}},
	} {
		if r, ok := c.Ratio(Pair{"a", "b"}); ok {
			t.Errorf("%s: got %v", name, r)
		}
	}
	c := Case{Samples: []Sample{{"a", 1, 2}, {"b", 2, 4}}}
	if r, ok := c.Ratio(Pair{"a", "b"}); !ok || r.Ratio != 0.5 || r.Least != 0.5 || r.Most != 0.5 {
		t.Errorf("without a common round: got %v, %v", r, ok)
	}
}

func TestVerdicts(t *testing.T) {
	for _, c := range []struct {
		name         string
		target       *Target
		ours, theirs float64
		want         Verdict
	}{
		{"no target", nil, 1, 1, NoTarget},
		{"ratio reached", RatioAtLeast(1.05), 105, 100, Met},
		{"ratio missed by little", RatioAtLeast(1.05), 104.99, 100, NotMet},
		{"ratio kept", RatioAtMost(0.9), 90, 100, Met},
		{"ratio exceeded", RatioAtMost(0.9), 91, 100, NotMet},
		{"median reached", AtLeast(80), 80, 1, Met},
		{"median exceeded", AtMost(0), 1, 100, NotMet},
		{"median not below", Below(30), 30, 100, NotMet},
		{"a bound nobody knows", &Target{Bound: "~", Value: 1}, 1, 1, NotMet},
	} {
		d := &Document{Subject: "ours", Pairs: []Pair{{"other", "theirs"}, {"ours", "theirs"}, {"ours", "other"}}}
		l := d.Case("g", "n", "")
		l.Target = c.target
		l.Add("ours", 1, c.ours)
		l.Add("theirs", 1, c.theirs)
		l.Add("other", 1, 1e9)
		if got := d.Verdict(l); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	d := example()
	if got := d.Verdict(d.Case("memory", "of <i>nobody</i>", "")); got != NotMeasured {
		t.Errorf("without a sample: got %q, want %q", got, NotMeasured)
	}
}

func TestGroupsStayTogether(t *testing.T) {
	d := &Document{}
	d.Case("a", "1", "")
	d.Case("b", "1", "")
	c := d.Case("a", "2", "")
	if d.Case("a", "2", "other") != c {
		t.Error("a case is made twice")
	}
	var got []string
	for _, c := range d.Cases {
		got = append(got, c.Group+c.Name)
	}
	if s := strings.Join(got, " ") + ", " + strings.Join(d.Groups(), " "); s != "a1 a2 b1, a b" {
		t.Errorf("got %s", s)
	}
}

func TestTextIsAligned(t *testing.T) {
	var b strings.Builder
	if err := example().WriteText(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	one := strings.Join(strings.Fields(text), " ")
	for _, want := range []string{
		"up, Mbit/s 800 700 20 1.14 (0.90 to 2.00) 0.03 (0.01 to 0.40) >= 1.05 met",
		"CPU, s/GB ↓ 2 2 - 1.00 - <= 0.9 not met", "idle, MB 27.5 - - - - < 30 met", "of the exit's process",
		"of <i>nobody</i>, MB - - - - - < 30 not measured", "2 x EPYC", "commit abc", "↓ less is better", "allocations 0 - - - - <= 0 met",
	} {
		if !strings.Contains(one, want) {
			t.Errorf("the table lacks %q", want)
		}
	}
	starts := map[int]int{} // of the verdicts
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		for _, v := range []Verdict{NotMet, NotMeasured, Met} {
			if before, ok := strings.CutSuffix(line, "  "+string(v)); ok {
				starts[len([]rune(before))]++
			}
		}
	}
	for _, n := range starts {
		if n != 5 {
			t.Errorf("the five verdicts start at %v", starts)
		}
	}
	if t.Failed() {
		t.Log("\n" + text)
	}
}

func TestJSONHasEverySample(t *testing.T) {
	d := example()
	d.Options = map[string]int{"rounds": 3}
	var b strings.Builder
	if err := d.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var doc jsonDocument
	if err := json.Unmarshal([]byte(b.String()), &doc); err != nil {
		t.Fatal(err)
	}
	c := doc.Cases[0]
	if len(doc.Cases) != 5 || len(c.Samples) != 9 || c.Stats["ours"].Median != 800 || len(c.Ratios) != 2 || c.Ratios[0].To != "theirs" ||
		c.Verdict != Met || *c.Target != *RatioAtLeast(1.05) || doc.Options == nil || doc.Environment.CPU != "EPYC" {
		t.Errorf("got %s", b.String())
	}
	d.Cases[0].Add("ours", 9, math.NaN())
	if err := d.WriteJSON(io.Discard); err == nil {
		t.Error("a value that is no number is written")
	}
}

// drawing is what a page's XML has.
type drawing struct {
	charts, whiskers, targets, ones int
	bars                            map[string]int // by class
	text                            strings.Builder
}

func parsePage(t *testing.T, page string) *drawing {
	t.Helper()
	g := &drawing{bars: map[string]int{}}
	for dec := xml.NewDecoder(strings.NewReader(page)); ; {
		tok, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return g
		}
		if err != nil {
			t.Fatalf("the page is no XML: %v\n%s", err, page)
		}
		switch tok := tok.(type) {
		case xml.CharData:
			g.text.Write(tok)
		case xml.StartElement:
			g.count(t, tok)
		}
	}
}

func (g *drawing) count(t *testing.T, e xml.StartElement) {
	t.Helper()
	attrs := map[string]string{}
	for _, a := range e.Attr {
		attrs[a.Name.Local] = a.Value
	}
	switch class := attrs["class"]; {
	case e.Name.Local == "script" || e.Name.Local == "b" || e.Name.Local == "third":
		t.Errorf("the page has the element %s", e.Name.Local)
	case e.Name.Local == "svg":
		g.charts++
	case strings.HasPrefix(class, "bar "):
		g.bars[strings.TrimPrefix(class, "bar ")]++
	case class == "whisker":
		g.whiskers++
	case class == "target":
		g.targets++
	case class == "one":
		g.ones++
	}
	for _, name := range []string{"x", "x1", "x2", "y", "y1", "y2", "width", "height"} {
		v, ok := attrs[name]
		if !ok || e.Name.Local == "svg" {
			continue
		}
		if n, err := strconv.ParseFloat(v, 64); err != nil || math.IsNaN(n) || n < -5 || n > chartWidth {
			t.Errorf("%s has %s=%q", e.Name.Local, name, v)
		}
	}
}

func TestPageDrawsEveryRatio(t *testing.T) {
	var b strings.Builder
	if err := example().WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	g := parsePage(t, b.String())
	if g.charts != 2 || g.ones != 2 { // the group with ratios, and the bounds
		t.Errorf("%d charts with %d lines at 1, want 2 and 2", g.charts, g.ones)
	}
	// up met, CPU not, the third without a target, the memory met; nothing of nobody, and no part of a bound of 0.
	if g.bars["met"] != 2 || g.bars["notmet"] != 1 || g.bars["other"] != 1 || len(g.bars) != 3 {
		t.Errorf("got bars %v", g.bars)
	}
	if g.targets != 3 || g.whiskers != 3 {
		t.Errorf("%d targets and %d whiskers, want 3 and 3", g.targets, g.whiskers)
	}
	for _, want := range []string{`Fast & <b>"plain"</b>`, "compare <script>", "</p>.", "<third> / theirs", "1.14 (0.90 to 2.00), target >= 1.05: met", "of <i>nobody</i>, MB", "not measured"} {
		if !strings.Contains(g.text.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func TestBarsAreToScale(t *testing.T) {
	d := &Document{Subject: "a", Pairs: []Pair{{"a", "b"}}}
	for name, v := range map[string]float64{"half": 0.5, "same": 1, "triple": 3} {
		c := d.Case("g", name, "")
		c.Target = RatioAtLeast(v)
		c.Add("a", 1, v)
		c.Add("b", 1, 1)
	}
	wild := d.Case("g", "one wild round", "")
	for round, v := range []float64{1, 1, 1000} {
		wild.Add("a", round, v)
		wild.Add("b", round, 1)
	}
	c, ok := d.ratioChart("g")
	if !ok || len(c.Bars) != 4 {
		t.Fatalf("got %+v", c)
	}
	for i, b := range c.Bars {
		if i == 3 {
			if b.To != barLeft+barWidth {
				t.Errorf("the whisker of a wild round ends at %v", b.To)
			}
			continue
		}
		r, _ := d.Cases[i].Ratio(d.Pairs[0])
		if want := r.Ratio * (c.One - barLeft); math.Abs(b.Len-want) > 1e-6 || math.Abs(b.Target-barLeft-want) > 1e-6 {
			t.Errorf("%v: bar of %v with its target at %v, want %v", r.Ratio, b.Len, b.Target-barLeft, want)
		}
	}
	if n := len(c.Ticks); n < 4 || n > 12 {
		t.Errorf("%d ticks", n)
	}
}

func TestAnEmptyDocumentIsWritten(t *testing.T) {
	d := &Document{Title: "nothing"}
	var b strings.Builder
	if err := errors.Join(d.WriteText(io.Discard), d.WriteJSON(io.Discard), d.WriteHTML(&b)); err != nil {
		t.Fatal(err)
	}
	if g := parsePage(t, b.String()); g.charts != 0 {
		t.Errorf("%d charts of nothing", g.charts)
	}
}
