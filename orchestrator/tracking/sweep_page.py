"""The front of a sweep as one HTML page that needs no network: a scatter plot to hover over and a table to sort."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>__TITLE__</title><style>
body{font:14px system-ui,sans-serif;color:#24292f;margin:24px;max-width:1100px}
h1{font-size:18px;margin:0 0 4px}p{margin:0 0 12px;color:#57606a}select{font:inherit;margin-right:12px}
svg{width:100%;height:420px;border:1px solid #d0d7de;border-radius:6px;background:#fff}
circle{cursor:pointer}table{border-collapse:collapse;margin-top:16px;width:100%;font-size:13px}
th,td{padding:4px 8px;border-bottom:1px solid #eaeef2;text-align:left;white-space:nowrap}
th{cursor:pointer;background:#f6f8fa;position:sticky;top:0}tr.front td{font-weight:600;color:#0969da}
tr.hover td{background:#fff8c5}tr.quiet td{color:#8c959f}#tip{min-height:20px;margin:8px 0;color:#24292f}
</style></head><body><h1>__TITLE__</h1><p id="words"></p>
<label>across <select id="x"></select></label><label>up <select id="y"></select></label>
<div id="tip">hover over a point</div><svg id="plot" viewBox="0 0 1000 420"></svg><table id="table"></table>
<script id="data" type="application/json">__DATA__</script><script>
"use strict";
const page=JSON.parse(document.getElementById("data").textContent),all=page.trials;
const names=Object.keys(page.objectives),paths=[...new Set(all.flatMap(t=>Object.keys(t.point)))];
const text=v=>v==null?"":
 typeof v==="number"?(Number.isInteger(v)?v.toLocaleString("en"):v.toPrecision(4)):
 typeof v==="object"?JSON.stringify(v):String(v);
document.getElementById("words").textContent=
 `${all.length} points, ${page.front.length} on the front; best ${page.best}`;
const pick=(id,start)=>{const s=document.getElementById(id);
 names.concat(paths).forEach(n=>s.add(new Option(n,n,false,n===start)));s.onchange=draw;return s};
const xs=pick("x",names[1]||paths[0]),ys=pick("y",names[0]),svg=document.getElementById("plot");
const value=(t,n)=>n in t.values?t.values[n]:t.point[n];
function scale(n,from,to){const v=all.map(t=>value(t,n)).filter(v=>typeof v==="number");
 if(!v.length){const w=[...new Set(all.map(t=>text(value(t,n))))].sort();
  const put=i=>from+(i+.5)/w.length*(to-from);
  return{at:t=>put(w.indexOf(text(value(t,n)))),ticks:w.map((s,i)=>[put(i),s])}}
 const lo=Math.min(...v),hi=Math.max(...v),log=lo>0&&hi/lo>30,f=log?Math.log:Number,span=(f(hi)-f(lo))||1;
 return{at:t=>typeof value(t,n)==="number"?from+(f(value(t,n))-f(lo))/span*(to-from):NaN,
  ticks:[0,.25,.5,.75,1].map(u=>[from+u*(to-from),text(log?Math.exp(f(lo)+u*span):lo+u*span)])}}
function add(tag,attrs,words){const e=document.createElementNS("http://www.w3.org/2000/svg",tag);
 for(const k in attrs)e.setAttribute(k,attrs[k]);if(words!=null)e.textContent=words;svg.append(e);return e}
function mark(t,on){document.getElementById("row-"+t.name).classList.toggle("hover",on);
 document.getElementById("tip").textContent=on?`${t.name} ${t.state}: `+names.map(n=>`${n} ${text(t.values[n])}`)
  .concat(Object.entries(t.point).map(([k,v])=>`${k} ${text(v)}`)).join(", "):"hover over a point"}
function draw(){svg.replaceChildren();const x=scale(xs.value,70,960),y=scale(ys.value,370,20);
 x.ticks.forEach(([p,s])=>{add("line",{x1:p,x2:p,y1:20,y2:370,stroke:"#eef0f2"});
  add("text",{x:p,y:388,"font-size":12,"text-anchor":"middle",fill:"#57606a"},s)});
 y.ticks.forEach(([p,s])=>{add("line",{x1:70,x2:960,y1:p,y2:p,stroke:"#eef0f2"});
  add("text",{x:64,y:p+4,"font-size":12,"text-anchor":"end",fill:"#57606a"},s)});
 add("text",{x:515,y:412,"font-size":13,"text-anchor":"middle"},xs.value);
 add("text",{x:70,y:14,"font-size":13},ys.value);
 [...all].sort((a,b)=>a.front-b.front).forEach(t=>{const cx=x.at(t),cy=y.at(t);if(!isFinite(cx)||!isFinite(cy))return;
  const c=add("circle",{cx,cy,r:t.front?7:5,fill:t.front?"#0969da":"#c3c8cf",stroke:"#fff"});
  c.onmouseenter=()=>mark(t,true);c.onmouseleave=()=>mark(t,false)})}
let order=null,up=1;
function table(){const head=["trial","state",...names,...paths,"step","seconds","reason"];
 const cell=(t,h)=>h==="trial"?t.name:h in t?t[h]:value(t,h);const rows=[...all];
 if(order)rows.sort((a,b)=>{const p=cell(a,order),q=cell(b,order);
  return up*(typeof p==="number"&&typeof q==="number"?p-q:text(p).localeCompare(text(q)))});
 const t=document.getElementById("table");t.replaceChildren();const r=t.insertRow();
 head.forEach(h=>{const e=document.createElement("th");e.textContent=h+(h===order?(up>0?" ▲":" ▼"):"");
  e.onclick=()=>{up=order===h?-up:1;order=h;table()};r.append(e)});
 rows.forEach(one=>{const row=t.insertRow();row.id="row-"+one.name;
  row.className=one.front?"front":["finished","stopped"].includes(one.state)?"":"quiet";
  head.forEach(h=>row.insertCell().textContent=text(cell(one,h)))})}
table();draw();
</script></body></html>
"""


def front_page(page: Mapping[str, Any]) -> str:
    """Return the page of a sweep's summary. Its values are data: none of them is read as markup."""
    data = json.dumps(page, ensure_ascii=True).replace("<", "\\u003c").replace("&", "\\u0026")
    title = str(page.get("name", "sweep")).replace("&", "&amp;").replace("<", "&lt;")
    return _PAGE.replace("__TITLE__", title).replace("__DATA__", data)
