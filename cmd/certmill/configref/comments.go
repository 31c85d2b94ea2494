package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
)

const module = "github.com/certmill/certmill"

// comments finds the comments of struct fields in the source of this module.
type comments struct {
	root   string                       // of the module
	byType map[string]map[string]string // "import/path.Type" → field → comment
	parsed map[string]bool              // import paths
}

func newComments(root string) *comments {
	return &comments{root: root, byType: map[string]map[string]string{}, parsed: map[string]bool{}}
}

// of returns the comment of a field; "" where it shares the comment of the field before it.
func (c *comments) of(structType reflect.Type, field string) (string, error) {
	if err := c.parse(structType.PkgPath()); err != nil {
		return "", err
	}
	fields, ok := c.byType[structType.PkgPath()+"."+structType.Name()]
	if !ok {
		return "", fmt.Errorf("no source of %s", structType)
	}
	return fields[field], nil
}

func (c *comments) parse(importPath string) error {
	if c.parsed[importPath] {
		return nil
	}
	c.parsed[importPath] = true
	dir, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return fmt.Errorf("%s is not of this module", importPath)
	}
	files, err := filepath.Glob(filepath.Join(c.root, dir, "*.go"))
	if err != nil {
		return err
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		c.collect(importPath, file)
	}
	return nil
}

func (c *comments) collect(importPath string, file *ast.File) {
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		structType, ok := spec.Type.(*ast.StructType)
		if !ok {
			return true
		}
		fields := map[string]string{}
		for _, f := range structType.Fields.List {
			for _, name := range f.Names {
				fields[name.Name] = strings.TrimSpace(f.Doc.Text())
			}
		}
		c.byType[importPath+"."+spec.Name.Name] = fields
		return true
	})
}

// moduleRoot finds go.mod above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fs.ErrNotExist
		}
	}
}
