package main

import (
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"

	"culvert.dev/culvert/node"
)

// oracle is a running node that explains.
type oracle struct {
	fakeNode
	asked node.Question
	err   error
}

func (o *oracle) Explain(q url.Values) (any, error) {
	o.asked = node.QuestionOf(q)
	verdict := "accept"
	if o.asked.Allow == "none" {
		verdict = "drop"
	}
	return node.Explanation{Asked: node.AskedNode, Verdict: verdict, Reason: "none", Why: "so it is"}, o.err
}

func TestExplainAsksTheRunningNode(t *testing.T) {
	o := &oracle{}
	socket := serveFake(t, o)
	code, out, errOut := runLine("explain", "--socket", socket, "--from", "laptop", "--to", "[2001:db8::1]:443/tcp", "--allow", "LAN,routing")
	if want := (node.Question{From: "laptop", To: "[2001:db8::1]:443/tcp", Allow: "routing,lan"}); o.asked != want {
		t.Errorf("asked %+v, want %+v", o.asked, want)
	}
	if code != 0 || errOut != "" || !strings.Contains(out, "accepted\n") || !strings.Contains(out, "asked       the running node\n") {
		t.Errorf("accepted: %d\n%s\n%s", code, out, errOut)
	}
	code, out, errOut = runLine("explain", "--socket", socket, "--from", "laptop", "--to", "10.0.0.1", "--icmp", "8", "--allow", "none", "--json")
	var e node.Explanation
	if err := json.Unmarshal([]byte(out), &e); code != exitDenied || errOut != "" || err != nil || e.Verdict != "drop" {
		t.Errorf("denied: %d, %v\n%s\n%s", code, err, out, errOut)
	}
	o.err = errors.New("to example.org: neither an address nor a peer")
	code, out, errOut = runLine("explain", "--socket", socket, "--from", "laptop", "--to", "example.org")
	if code != 1 || out != "" || errOut != "culvert: to example.org: neither an address nor a peer\n" {
		t.Errorf("a bad question: %d\n%s\n%s", code, out, errOut)
	}
}
