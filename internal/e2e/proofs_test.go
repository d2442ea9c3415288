package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestProofsExist: a test that the manual names is there.
func TestProofsExist(t *testing.T) {
	text, err := os.ReadFile(manual)
	if err != nil {
		t.Fatal(err)
	}
	missing := make(map[string]bool)
	for _, name := range regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(string(text), -1) {
		missing[name[1]] = true
	}
	if len(missing) < 20 {
		t.Errorf("%s names only %d tests", manual, len(missing))
	}
	err = filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
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
		t.Errorf("%s names %s, and there is no such test", manual, name)
	}
}

// TestArchitectureIsThere: every file that the page names is there, and every
// function in the file that it is said to be in.
func TestArchitectureIsThere(t *testing.T) {
	const root = "../../"
	text, err := os.ReadFile(root + "docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	places := regexp.MustCompile("`([a-z0-9_/]+\\.(?:go|lua))(?:: ([A-Za-z0-9]+))?`").FindAllStringSubmatch(string(text), -1)
	if len(places) < 40 {
		t.Errorf("only %d places are named", len(places))
	}
	for _, place := range places {
		path, function := place[1], place[2]
		source, err := os.ReadFile(root + path)
		if err != nil && !strings.Contains(path, "/") {
			continue // named "beside" one that has its folder
		}
		if err != nil {
			t.Errorf("%s: %v", place[0], err)
			continue
		}
		if function != "" && !regexp.MustCompile(`(?m)^func (\([^)]*\) )?`+function+`\(`).Match(source) {
			t.Errorf("%s: there is no such function", place[0])
		}
	}
}
