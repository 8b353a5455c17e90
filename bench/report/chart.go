package report

import (
	"math"
	"strconv"
)

// chart is a drawing of bars that lie on each other, with one scale. Lengths are in the units of its viewBox.
type chart struct {
	Title         string
	Width, Height float64
	Bars          []bar
	Captions      []caption
	Ticks         []tick
	One           float64 // where the line at 1.0 stands
	Top, Bottom   float64 // of the lines
}

type caption struct {
	Y    float64
	Text string
}

type tick struct {
	X    float64
	Text string
}

type bar struct {
	Class    string // met, notmet, plain or other
	Label    string // to the left
	Text     string // to the right
	X, Y     float64
	Len      float64
	Height   float64
	TextX    float64
	Mid      float64 // height of the whisker's line
	From, To float64 // ends of the whisker; equal where there is none
	Target   float64 // 0: none
}

// Sizes of a chart. The texts to both sides have a font of 12 units, whose characters are about 6.6 wide.
const (
	chartWidth = 980
	barLeft    = 190
	barWidth   = 420
	textLeft   = barLeft + barWidth + 12
	barHeight  = 16
	barStride  = 22
	captionLen = 22 // height
	caseGap    = 8
	axisHeight = 24
)

// entry is what a bar is about.
type entry struct {
	class, label, text string
	value, least, most float64
	target             float64 // 0: none
}

// topic is a caption with its bars.
type topic struct {
	caption string
	entries []entry
}

// ratioChart draws the ratios of a group; ok is false where it has none.
func (d *Document) ratioChart(group string) (c chart, ok bool) {
	var topics []topic
	for _, cs := range d.Cases {
		if cs.Group != group {
			continue
		}
		t := topic{caption: d.line(cs).Name}
		for i, p := range d.Pairs {
			if r, ok := cs.Ratio(p); ok {
				t.entries = append(t.entries, d.ratioEntry(cs, i, r))
			}
		}
		if len(t.entries) > 0 {
			topics = append(topics, t)
		}
	}
	return draw(group, topics), len(topics) > 0
}

func (d *Document) ratioEntry(c *Case, pair int, r Ratio) entry {
	t := d.targetOfPair(c, pair)
	e := entry{class: "plain", label: r.Of + " / " + r.To, value: r.Ratio, least: r.Least, most: r.Most}
	e.text = ratioCell(r, true, t).String()
	if r.Of != d.Subject {
		e.class = "other"
	}
	if t != nil {
		e.target = t.Value
		e.class, e.text = d.judge(c, e.text)
	}
	return e
}

// judge returns the class of the bar that the case's target is about, and the text with the verdict.
func (d *Document) judge(c *Case, text string) (class, judged string) {
	class = "notmet"
	if d.Verdict(c) == Met {
		class = "met"
	}
	return class, text + ", target " + c.Target.String() + ": " + string(d.Verdict(c))
}

// boundChart draws the subject's figures that have an absolute target, as parts of it.
func (d *Document) boundChart() (c chart, ok bool) {
	var topics []topic
	for _, cs := range d.Cases {
		s := cs.Stats(d.Subject)
		if cs.Target == nil || !cs.Target.Absolute || cs.Target.Value <= 0 || s.N == 0 {
			continue
		}
		of := cs.Target.Value
		e := entry{label: d.Subject, value: s.Median / of, least: s.Least / of, most: s.Most / of, target: 1}
		e.class, e.text = d.judge(cs, valueCell(s, cs.Target).String())
		topics = append(topics, topic{cs.Group + ": " + d.line(cs).Name, []entry{e}})
	}
	return draw("Figures with a bound, as parts of it", topics), len(topics) > 0
}

// draw places bars. The scale is that of the bars and targets: a whisker that leaves it ends at the edge.
func draw(title string, topics []topic) chart {
	most := 1.0
	for _, t := range topics {
		for _, e := range t.entries {
			most = max(most, e.value, e.target)
		}
	}
	step := tickStep(most * 1.2)
	end := math.Ceil(most*1.2/step) * step
	x := func(v float64) float64 { return barLeft + max(0, min(v/end, 1))*barWidth }

	c := chart{Title: title, Width: chartWidth, One: x(1)}
	y := 0.0
	for _, t := range topics {
		c.Captions = append(c.Captions, caption{y + captionLen - 6, t.caption})
		y += captionLen
		for _, e := range t.entries {
			b := bar{
				Class: e.class, Label: e.label, Text: e.text, TextX: textLeft,
				X: barLeft, Y: y, Len: x(e.value) - barLeft, Height: barHeight, Mid: y + barHeight/2, From: x(e.least), To: x(e.most),
			}
			if e.target > 0 {
				b.Target = x(e.target)
			}
			c.Bars = append(c.Bars, b)
			y += barStride
		}
		y += caseGap
	}
	c.Bottom, c.Height = y, y+axisHeight
	for i := 0; ; i++ {
		v := float64(i) * step
		if v > end*1.0001 {
			return c
		}
		c.Ticks = append(c.Ticks, tick{x(v), strconv.FormatFloat(v, 'g', 6, 64)})
	}
}

// tickStep is a round number, four to ten of which make up most.
func tickStep(most float64) float64 {
	unit := math.Pow(10, math.Floor(math.Log10(most)))
	switch n := most / unit; {
	case n <= 2:
		return unit / 4
	case n <= 4:
		return unit / 2
	default:
		return unit
	}
}
