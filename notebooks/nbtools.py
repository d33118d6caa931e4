import json
HID={"cellView":"form","collapsed":True,"jupyter":{"outputs_hidden":True,"source_hidden":True}}
class Book:
    def __init__(self): self.cells=[]
    def add(self, kind, text, meta=None):
        c={"cell_type":kind,"id":f"cell-{len(self.cells)+1:03d}","metadata":meta or {},"source":text.strip("\n").splitlines(keepends=True)}
        if kind=="code":
            c["execution_count"]=None; c["outputs"]=[]
        self.cells.append(c)
    def md(self,text): self.add("markdown", text)
    def code(self,text,loose=False): self.add("code", text, {"tags":["nbval-ignore-output"]} if loose else None)
    def fig(self,name, caption, alt, text):
        self.add("code", text, {"jupyter":{"source_hidden":True},"mystnb":{"figure":{"caption":caption,"name":name},"image":{"alt":alt}},"tags":["hide-input","nbval-ignore-output"]})
    def table(self,text):
        self.add("code", text, {"jupyter":{"source_hidden":True},"tags":["hide-input","nbval-ignore-output"]})
    def fold(self,title, text):
        self.add("code", f"# @title {title}\n"+text.strip("\n"), {**HID,"mystnb":{"code_prompt_hide":title,"code_prompt_show":title},"tags":["hide-cell"]})
    def checks(self,text):
        n=text.count("claim(")
        self.fold(f"✓ {n} check"+("s" if n>1 else ""), text)
    def write(self,path):
        nb={"cells":self.cells,"metadata":{"kernelspec":{"display_name":"Python 3","language":"python","name":"python3"},"language_info":{"name":"python"}},"nbformat":4,"nbformat_minor":5}
        open(path,'w').write(json.dumps(nb,indent=1,ensure_ascii=False)+"\n")
