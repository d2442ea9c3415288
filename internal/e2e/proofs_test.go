package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../../"

// pageOf reads a page of the manual.
func pageOf(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(root + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestProofsExist: a test that the pages about promises and faults name is there.
func TestProofsExist(t *testing.T) {
	const proofs = "docs/proofs.md"
	missing := make(map[string]bool)
	for _, name := range regexp.MustCompile("`(?:[a-z0-9_/]+\\.go: )?(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(pageOf(t, proofs), -1) {
		missing[name[1]] = true
	}
	if len(missing) < 60 {
		t.Errorf("%s names only %d tests", proofs, len(missing))
	}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		for name := range missing {
			if strings.Contains(string(source), "func "+name+"(") {
				delete(missing, name)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range missing {
		t.Errorf("%s names %s, and there is no such test", proofs, name)
	}
}

// TestPlacesInTheCodeAreThere: every file that these pages name is there, and
// every function in the file that it is said to be in.
func TestPlacesInTheCodeAreThere(t *testing.T) {
	for page, least := range map[string]int{"docs/architecture.md": 40, "docs/proofs.md": 40} {
		places := regexp.MustCompile("`([a-z0-9_/]+\\.(?:go|lua))(?:: ([A-Za-z0-9]+))?`").FindAllStringSubmatch(pageOf(t, page), -1)
		if len(places) < least {
			t.Errorf("%s names only %d places", page, len(places))
		}
		for _, place := range places {
			path, function := place[1], place[2]
			source, err := os.ReadFile(root + path)
			if err != nil && !strings.Contains(path, "/") && function == "" {
				continue // named "beside" one that has its folder
			}
			if err != nil {
				t.Errorf("%s, %s: %v", page, place[0], err)
				continue
			}
			if function != "" && !regexp.MustCompile(`(?m)^func (\([^)]*\) )?`+function+`\(`).Match(source) {
				t.Errorf("%s, %s: there is no such function", page, place[0])
			}
		}
	}
}
