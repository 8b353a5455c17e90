package control

import (
	"context"
	"errors"
	"net/url"
	"testing"
)

// oracle is a node that explains.
type oracle struct{ fakeNode }

func (o *oracle) Explain(q url.Values) (any, error) {
	if q.Get("to") == "" {
		return nil, errors.New("to: an address is missing")
	}
	return map[string]string{"verdict": "accept", "to": q.Get("to")}, nil
}

func TestExplain(t *testing.T) {
	c := clientOf(t, &oracle{})
	var answer struct{ Verdict, To string }
	if err := c.Explain(context.Background(), url.Values{"to": {"[fd00::1]:443/tcp & more"}}, &answer); err != nil || answer.Verdict != "accept" || answer.To != "[fd00::1]:443/tcp & more" {
		t.Errorf("got %+v, %v", answer, err)
	}
	if err := c.Explain(context.Background(), url.Values{}, &answer); err == nil || err.Error() != "to: an address is missing" {
		t.Errorf("a bad question: got %v", err)
	}
	wantError(t, clientOf(t, &fakeNode{}).Explain(context.Background(), url.Values{}, &answer), "there is no /v1/explain")
}

func clientOf(t *testing.T, s Source) *Client {
	path := t.TempDir() + "/s"
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	server := Serve(l, s, nil)
	t.Cleanup(func() { server.Shutdown(context.Background()) })
	return NewClient(path)
}
