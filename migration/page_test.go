package migration

import (
	"os"
	"strings"
	"testing"
)

// section returns what docs/migrating.md has below a heading.
func section(t *testing.T, from string) string {
	t.Helper()
	text, err := os.ReadFile("../docs/migrating.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "\n## From "+from+"\n")
	if !found {
		t.Fatalf("docs/migrating.md has no section %q", from)
	}
	body, _, _ := strings.Cut(rest, "\n## ")
	return body
}

// block returns the first block of a section in a language.
func block(t *testing.T, from, language string) string {
	t.Helper()
	_, rest, found := strings.Cut(section(t, from), "```"+language+"\n")
	text, _, closed := strings.Cut(rest, "```")
	if !found || !closed {
		t.Fatalf("section %q has no block of %s", from, language)
	}
	return text
}

// rows runs tests of what the rows of a section say of the other limiter, each by the
// name of its row.
func rows(t *testing.T, from string, tests map[string]func(t *testing.T)) {
	t.Helper()
	named := make(map[string]bool)
	for line := range strings.Lines(section(t, from)) {
		if rest, ok := strings.CutPrefix(line, "| "); ok {
			cell, _, _ := strings.Cut(rest, " | ")
			named[strings.ReplaceAll(cell, "`", "")] = true
		}
	}
	for name, test := range tests {
		if !named[name] {
			t.Errorf("section %q has no row %q", from, name)
		}
		t.Run(strings.ReplaceAll(name, "/", "|"), test)
	}
}
