package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// FlowSource is a Source that tracks flows. The query says which ones; its parameters are the source's.
type FlowSource interface {
	ListFlows(query url.Values) (iter.Seq[any], error)
	CountFlows(query url.Values) (int, error)
	FlushFlows(query url.Values) (int, error) // returns how many it has ended

	// WatchFlows calls emit for every event until ctx ends or emit fails. more says that another one is ready.
	WatchFlows(ctx context.Context, query url.Values, emit func(event any, more bool) error) error
}

type flowCount struct {
	Flows int `json:"flows"`
}

// lineWriter writes a stream of JSON documents, one a line, to a client that may read as slowly as it likes.
type lineWriter struct {
	http *http.ResponseController
	buf  *bufio.Writer
	enc  *json.Encoder
}

const lineBuffer = 32 << 10

// startLines begins the answer. The server's deadlines no longer apply: a stream ends with its client or the node.
func startLines(w http.ResponseWriter) (*lineWriter, error) {
	c := http.NewResponseController(w)
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	if err := c.SetWriteDeadline(time.Time{}); err != nil {
		return nil, err
	}
	w.Header().Set("Content-Type", "application/jsonl")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	l := &lineWriter{http: c, buf: bufio.NewWriterSize(w, lineBuffer)}
	l.enc = json.NewEncoder(l.buf)
	l.enc.SetEscapeHTML(false)
	return l, nil
}

func (l *lineWriter) flush() error {
	if err := l.buf.Flush(); err != nil {
		return err
	}
	return l.http.Flush()
}

func (s *Server) serveFlows(w http.ResponseWriter, r *http.Request, source FlowSource) {
	flows, err := source.ListFlows(r.URL.Query())
	if err != nil {
		writeJSON(w, http.StatusBadRequest, failure{err.Error()})
		return
	}
	l, err := startLines(w)
	if err != nil {
		return
	}
	for f := range flows {
		if l.enc.Encode(f) != nil {
			return // the client has gone
		}
	}
	l.flush()
}

func (s *Server) serveFlowEvents(w http.ResponseWriter, r *http.Request, source FlowSource) {
	var l *lineWriter
	err := source.WatchFlows(r.Context(), r.URL.Query(), func(event any, more bool) (err error) {
		if l == nil {
			if l, err = startLines(w); err != nil {
				return err
			}
		}
		if event != nil {
			err = l.enc.Encode(event)
		}
		if err == nil && !more {
			err = l.flush()
		}
		return err
	})
	if err != nil && l == nil && r.Context().Err() == nil {
		writeJSON(w, http.StatusBadRequest, failure{err.Error()})
	}
}

func (s *Server) serveFlowCount(w http.ResponseWriter, r *http.Request, source FlowSource) {
	s.answerCount(w, r, source.CountFlows)
}

func (s *Server) serveFlowFlush(w http.ResponseWriter, r *http.Request, source FlowSource) {
	s.answerCount(w, r, source.FlushFlows)
}

func (s *Server) answerCount(w http.ResponseWriter, r *http.Request, count func(url.Values) (int, error)) {
	n, err := count(r.URL.Query())
	if err != nil {
		writeJSON(w, http.StatusBadRequest, failure{err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, flowCount{n})
}

// withFlows serves what only a source with flows has.
func (s *Server) withFlows(serve func(http.ResponseWriter, *http.Request, FlowSource)) http.HandlerFunc {
	source, ok := s.source.(FlowSource)
	if !ok {
		return nil
	}
	return func(w http.ResponseWriter, r *http.Request) { serve(w, r, source) }
}

// Flows calls fn for each flow that query chooses, with its document. fn must not keep it.
func (c *Client) Flows(ctx context.Context, query url.Values, fn func(document json.RawMessage) error) error {
	return c.lines(ctx, "/v1/conntrack", query, fn)
}

// FlowEvents calls fn for each event of the flows that query chooses, until ctx ends or the node stops; it returns nil for both.
func (c *Client) FlowEvents(ctx context.Context, query url.Values, fn func(document json.RawMessage) error) error {
	err := c.lines(ctx, "/v1/conntrack/events", query, fn)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// CountFlows returns how many flows query chooses.
func (c *Client) CountFlows(ctx context.Context, query url.Values) (int, error) {
	var n flowCount
	err := c.call(ctx, http.MethodGet, "/v1/conntrack/count?"+query.Encode(), answerTime, &n)
	return n.Flows, err
}

// FlushFlows ends the flows that query chooses and returns how many.
func (c *Client) FlushFlows(ctx context.Context, query url.Values) (int, error) {
	var n flowCount
	err := c.call(ctx, http.MethodPost, "/v1/conntrack/flush?"+query.Encode(), writeTime, &n)
	return n.Flows, err
}

// lines reads an answer of one JSON document a line.
func (c *Client) lines(ctx context.Context, path string, query url.Values, fn func(json.RawMessage) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, unixSocketURL+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	return c.stream(req, 64<<10, fn)
}

// stream makes a request that is answered by one JSON document a line, none of more than longest bytes.
func (c *Client) stream(req *http.Request, longest int, fn func(json.RawMessage) error) error {
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument))
		if err != nil {
			return c.explain(err)
		}
		return c.refused(resp, body)
	}
	scan := bufio.NewScanner(resp.Body)
	scan.Buffer(make([]byte, lineBuffer), longest)
	for scan.Scan() {
		if err := fn(bytes.TrimSpace(scan.Bytes())); err != nil {
			return err
		}
	}
	if err := scan.Err(); err != nil {
		return fmt.Errorf("the answer broke off: %w", c.explain(err))
	}
	return nil
}
