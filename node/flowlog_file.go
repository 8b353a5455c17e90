package node

import (
	"bytes"
	"encoding/json"
	"io"
	"net/netip"
	"time"

	"culvert.dev/culvert/filter"
	"culvert.dev/culvert/nat"
)

const (
	flowLogChunk = 64 << 10
	lossReport   = time.Minute // between warnings about lost lines
)

// flowLogFile is the file in use.
type flowLogFile struct {
	*flowLog
	w      io.WriteCloser
	buf    bytes.Buffer
	lines  uint64    // in buf
	torn   bool      // the file ends within a line
	failed bool      // the error has been reported
	warned time.Time // of lost lines
}

func (f *flowLogFile) write(batch []flowLine, lost uint64) {
	enc := json.NewEncoder(&f.buf)
	enc.SetEscapeHTML(false)
	for i := range batch {
		enc.Encode(f.document(&batch[i])) // of what it holds, everything can be encoded
		if f.lines++; f.buf.Len() >= flowLogChunk {
			f.flush()
		}
	}
	if lost > 0 {
		enc.Encode(lossDocument{Moment{time.Now()}, lost})
		f.lines++
		f.lose(lost)
	}
	f.flush()
}

// flush writes what has been encoded. After an error lines are lost until writing succeeds again.
func (f *flowLogFile) flush() {
	if f.buf.Len() == 0 {
		return
	}
	b := f.buf.Bytes()
	if f.torn {
		b = append([]byte("\n"), b...)
	}
	n, err := f.w.Write(b)
	if n > 0 {
		f.torn = b[n-1] != '\n'
	}
	if err != nil {
		if !f.failed {
			f.failed = true
			f.log.Error("write the flow log; lines are lost until that succeeds", "err", err)
		}
		f.lostAll.Add(f.lines)
	} else if f.failed {
		f.failed = false
		f.log.Info("the flow log is written again")
	}
	f.buf.Reset()
	f.lines = 0
}

// lose counts lines that were never encoded.
func (f *flowLogFile) lose(lines uint64) {
	total := f.lostAll.Add(lines)
	if now := time.Now(); now.Sub(f.warned) >= lossReport {
		f.warned = now
		f.log.Warn("the flow log cannot keep up", "lost", lines, "lost_in_total", total)
	}
}

// The documents of the flow log. Names and meaning of fields stay; fields may be added.
type (
	endDocument struct {
		Start     Moment     `json:"start"`
		End       Moment     `json:"end"`
		DurationS float64    `json:"duration_s"`
		Verdict   string     `json:"verdict"` // "accept"
		Ended     string     `json:"ended"`
		Peer      string     `json:"peer"`
		ReplyPeer string     `json:"reply_peer,omitempty"`
		Proto     string     `json:"proto"`
		Src       netip.Addr `json:"src"`
		SrcPort   uint16     `json:"sport,omitempty"`
		Dst       netip.Addr `json:"dst"`
		DstPort   uint16     `json:"dport,omitempty"`
		// Whole IP packets inside the tunnel, from the peer and to it.
		OrigPackets  uint64 `json:"orig_packets"`
		OrigBytes    uint64 `json:"orig_bytes"`
		ReplyPackets uint64 `json:"reply_packets"`
		ReplyBytes   uint64 `json:"reply_bytes"`
	}
	denialDocument struct {
		Start   Moment     `json:"start"`
		Verdict string     `json:"verdict"` // "reject" or "drop"
		Reason  string     `json:"reason"`
		Rule    string     `json:"rule,omitempty"` // file and line
		Peer    string     `json:"peer"`
		Proto   string     `json:"proto"`
		Src     netip.Addr `json:"src"`
		SrcPort uint16     `json:"sport,omitempty"`
		Dst     netip.Addr `json:"dst"`
		DstPort uint16     `json:"dport,omitempty"`
		Skipped uint64     `json:"skipped,omitempty"` // denials before this one that have no line
	}
	lossDocument struct {
		Time Moment `json:"time"`
		Lost uint64 `json:"lost"` // lines
	}
)

func (f *flowLogFile) document(l *flowLine) any {
	if d := l.denial; d != nil {
		doc := denialDocument{
			Start: Moment{d.at}, Verdict: d.action.String(), Reason: d.reason.String(), Peer: f.names.of(d.key.Peer), Proto: protoName(d.key.Proto),
			Src: d.key.SrcAddr(), SrcPort: d.key.SrcPort, Dst: d.key.DstAddr(), DstPort: d.key.DstPort, Skipped: d.skipped,
		}
		if d.rule != nil {
			doc.Rule = d.rule.Place()
		}
		return doc
	}
	i, end := &l.end.Flow, l.end.Time
	if l.end.Why == nat.Expired {
		end = i.Last
	}
	return endDocument{
		Start: Moment{i.Started}, End: Moment{end}, DurationS: max(0, end.Sub(i.Started).Round(time.Millisecond).Seconds()),
		Verdict: filter.Accept.String(), Ended: ended(&l.end),
		Peer: f.names.of(i.Key.Peer), ReplyPeer: f.names.of(i.Reply.Peer), Proto: protoName(i.Key.Proto),
		Src: i.Key.SrcAddr(), SrcPort: i.Key.SrcPort, Dst: i.Key.DstAddr(), DstPort: i.Key.DstPort,
		OrigPackets: i.Original.Packets, OrigBytes: i.Original.Bytes, ReplyPackets: i.Answers.Packets, ReplyBytes: i.Answers.Bytes,
	}
}
