package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Bencher is a Source that measures throughput inside its mesh. What is asked for and told is the source's.
type Bencher interface {
	// Bench does what order says, and calls emit for every event until all is done, ctx ends or emit fails. An error before the first
	// event is one of the order. run is the number by which StopBench knows it.
	Bench(ctx context.Context, order json.RawMessage, emit func(event any) error) error

	// StopBench has a run come to its end with what it has so far. A run that is over already is none to stop.
	StopBench(run uint64)
}

const (
	maxOrder = 64 << 10

	// benchStall is how long a client may leave an event unread before its run is ended: the load goes on meanwhile.
	benchStall = time.Minute
)

func (s *Server) serveBench(w http.ResponseWriter, r *http.Request, source Bencher) {
	serveBench(w, r, source, benchStall)
}

func serveBench(w http.ResponseWriter, r *http.Request, source Bencher, stall time.Duration) {
	order, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxOrder))
	if err != nil {
		writeJSON(w, http.StatusBadRequest, failure{"read the order: " + err.Error()})
		return
	}
	var l *lineWriter
	err = source.Bench(r.Context(), order, func(event any) (err error) {
		if l == nil {
			if l, err = startLines(w); err != nil {
				return err
			}
		}
		if err := l.http.SetWriteDeadline(time.Now().Add(stall)); err != nil {
			return err
		}
		if err := l.enc.Encode(event); err != nil {
			return err
		}
		return l.flush()
	})
	switch {
	case l != nil:
		l.http.SetWriteDeadline(time.Now().Add(stall)) // for the end of the answer, long after its last event
	case err != nil && r.Context().Err() == nil:
		writeJSON(w, http.StatusBadRequest, failure{err.Error()})
	}
}

func (s *Server) serveBenchStop(w http.ResponseWriter, r *http.Request, source Bencher) {
	run, err := strconv.ParseUint(r.URL.Query().Get("run"), 10, 64)
	if err != nil {
		writeJSON(w, http.StatusBadRequest, failure{fmt.Sprintf("run: %q is not a number", r.URL.Query().Get("run"))})
		return
	}
	source.StopBench(run)
	writeJSON(w, http.StatusOK, struct{}{})
}

// withBencher serves what only a source with a mesh has.
func (s *Server) withBencher(serve func(http.ResponseWriter, *http.Request, Bencher)) http.HandlerFunc {
	source, ok := s.source.(Bencher)
	if !ok {
		return nil
	}
	return func(w http.ResponseWriter, r *http.Request) { serve(w, r, source) }
}

// Bench has the node measure as order says, and calls fn for each event. It returns nil when all is done, or ctx has ended, which ends
// the run at once; StopBench has it tell its results first.
func (c *Client) Bench(ctx context.Context, order any, fn func(document json.RawMessage) error) error {
	err := c.bench(ctx, order, fn)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (c *Client) bench(ctx context.Context, order any, fn func(document json.RawMessage) error) error {
	body, err := json.Marshal(order)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, unixSocketURL+"/v1/bench", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	return c.stream(req, maxDocument, fn) // the last line has every interval
}

// StopBench has a run end with what it has so far. Its events say which run it is.
func (c *Client) StopBench(ctx context.Context, run uint64) error {
	query := url.Values{"run": {strconv.FormatUint(run, 10)}}
	return c.call(ctx, http.MethodPost, "/v1/bench/stop?"+query.Encode(), answerTime, new(struct{}))
}
